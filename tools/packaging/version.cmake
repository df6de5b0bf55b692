# Sets TPLSTORE_VERSION: the project's version, and of what is no release the commit behind it, as it is
# when the build is configured. A release is the commit with the tag v<version>. Git knows the commit, or
# in an archive that git has made the file beside this one; where neither does, it is left out.
set(TPLSTORE_VERSION ${PROJECT_VERSION})
file(STRINGS ${CMAKE_CURRENT_LIST_DIR}/commit archived LIMIT_COUNT 1)
if(archived MATCHES "^([0-9a-f]+) (.*)$")
  string(SUBSTRING ${CMAKE_MATCH_1} 0 12 commit)
  if(NOT CMAKE_MATCH_2 MATCHES "tag: v${PROJECT_VERSION}(,|$)")
    string(APPEND TPLSTORE_VERSION "+g${commit}")
  endif()
elseif(EXISTS ${PROJECT_SOURCE_DIR}/.git)
  find_program(GIT git)
  if(GIT)
    execute_process(
      COMMAND ${GIT} -C ${PROJECT_SOURCE_DIR} describe --tags --always --dirty=.dirty --abbrev=12
              --exact-match --match v${PROJECT_VERSION}
      OUTPUT_VARIABLE described OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if(NOT described STREQUAL "v${PROJECT_VERSION}")
      execute_process(
        COMMAND ${GIT} -C ${PROJECT_SOURCE_DIR} describe --always --dirty=.dirty --abbrev=12
                --exclude *
        OUTPUT_VARIABLE described OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
      if(described)
        string(APPEND TPLSTORE_VERSION "+g${described}")
      endif()
    endif()
  endif()
endif()
message(STATUS "tplstore ${TPLSTORE_VERSION}")
