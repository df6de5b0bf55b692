// From 32-bit numbers to pointers: a radix tree that is read without a lock, in four loads. Its
// nodes stay until the end, so it suits numbers that are dense.
//
// Memory: 8 KiB, and 2 KiB for each further 256 numbers in a row that are used.
// Thread safety: find() at any time, put() by one thread at a time. What becomes of that which a
// pointer leads to when another takes its place is the caller's business.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

namespace tplstore {

template <typename T>
class PointerTable {
 public:
  // nullptr when nothing was put there.
  T* find(uint32_t number) const {
    const Node* node = &root_;
    for (int shift = 24; shift > 0; shift -= 8) {
      node = static_cast<const Node*>(node->at(number >> shift).load(std::memory_order_acquire));
      if (node == nullptr) return nullptr;
    }
    return static_cast<T*>(node->at(number).load(std::memory_order_acquire));
  }

  void put(uint32_t number, T* pointer) {
    node_of(number).at(number).store(pointer, std::memory_order_release);
  }
  // Makes the next put() of this number one that cannot fail.
  void make_room(uint32_t number) { node_of(number); }
  // By the thread that puts.
  size_t memory_bytes() const { return sizeof(*this) + nodes_.size() * sizeof(Node); }

 private:
  struct Node {
    std::array<std::atomic<void*>, 256> slots{};

    std::atomic<void*>& at(uint32_t number) { return slots[number & 255]; }
    const std::atomic<void*>& at(uint32_t number) const { return slots[number & 255]; }
  };

  // The node that a number's pointer stands in; made if it is not there.
  Node& node_of(uint32_t number) {
    Node* node = &root_;
    for (int shift = 24; shift > 0; shift -= 8) {
      std::atomic<void*>& below = node->at(number >> shift);
      node = static_cast<Node*>(below.load(std::memory_order_relaxed));
      if (node != nullptr) continue;
      node = nodes_.emplace_back(std::make_unique<Node>()).get();
      below.store(node, std::memory_order_release);
    }
    return *node;
  }

  Node root_;
  std::vector<std::unique_ptr<Node>> nodes_;
};

}  // namespace tplstore
