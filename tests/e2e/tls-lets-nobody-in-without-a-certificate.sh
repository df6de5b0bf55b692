#!/usr/bin/env bash
# With --tls=require and certificates nobody gets in who does not show one of the server's authority;
# who does writes the volume, whatever the client is. Over a Unix socket other users
# get in nowhere: neither as a VM nor as one who commands.
. "$(dirname "$0")/../functions.sh"
requires root setpriv openssl nbdinfo qemu-io python-libnbd jq
nbdkit --dump-config | grep -q '^tls=yes' || skip "this nbdkit has no TLS"

# authority NAME: makes one, in $tmp/NAME.
authority() {
    mkdir "$tmp/$1"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj "/CN=$1" \
        -keyout "$tmp/$1/ca-key.pem" -out "$tmp/$1/ca-cert.pem" 2>>"$tmp/openssl.log"
}
# certificate AUTHORITY NAME USE: of serverAuth or clientAuth, with what the programs want beside it.
certificate() {
    local of=$tmp/$1 to=$tmp/$2 what=${3%Auth}
    mkdir -p "$to"
    cp "$of/ca-cert.pem" "$to/"
    printf 'subjectAltName=DNS:localhost\nextendedKeyUsage=%s\nkeyUsage=digitalSignature\n' "$3" >"$tmp/extensions"
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=localhost" -keyout "$to/$what-key.pem" \
        -out "$tmp/request" 2>>"$tmp/openssl.log"
    openssl x509 -req -in "$tmp/request" -CA "$of/ca-cert.pem" -CAkey "$of/ca-key.pem" \
        -CAcreateserial -days 2 -extfile "$tmp/extensions" -out "$to/$what-cert.pem" \
        2>>"$tmp/openssl.log"
}
authority ours
authority theirs
certificate ours server serverAuth
certificate ours host2 clientAuth
certificate theirs stranger clientAuth
cp "$tmp/ours/ca-cert.pem" "$tmp/stranger/"

new_store
tplstore volume create vm1 --size 16M
port=$($python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
env ${TPLSTORE_PRELOAD:+"LD_PRELOAD=$TPLSTORE_PRELOAD"} \
    nbdkit --foreground --ipaddr 127.0.0.1 --port "$port" --pidfile "$tmp/tls.pid" --tls=require \
    --tls-certificates="$tmp/server" --tls-verify-peer "$TPLSTORE_PLUGIN" "$store" \
    </dev/null >>"$tmp/tls.log" 2>&1 &
nbdkit_pid[tls]=$!
await 60 server_is_ready_or_gone tls || fail "the server does not start"

cat >"$tmp/client.py" <<'END'
import nbd, sys
client = nbd.NBD()
how, port, export = sys.argv[1:4]
client.set_export_name(export)
if how != "plain":
    client.set_tls(nbd.TLS_REQUIRE)
    client.set_tls_verify_peer(True)
    client.set_tls_certificates(how)
try:
    client.connect_tcp("localhost", port)
    client.pwrite(b"x" * 4096, 0)
    client.flush()
except nbd.Error as error:
    sys.exit(str(error))
client.shutdown()
END
gets_in() { $python "$tmp/client.py" "$1" "$port" "$2" >"$tmp/client.out" 2>&1; }
for export in vm1 "vm1;writer=a"; do
    gets_in "$tmp/host2" "$export" || fail "with a certificate: $(cat "$tmp/client.out")"
    ! gets_in plain "$export" || fail "$export is served without TLS"
    ! gets_in "$tmp/stranger" "$export" || fail "$export is served to one of another authority"
    mkdir -p "$tmp/none"
    cp "$tmp/ours/ca-cert.pem" "$tmp/none/"
    ! gets_in "$tmp/none" "$export" || fail "$export is served without a certificate"
done
! nbdinfo --list "nbd://localhost:$port" >"$tmp/list.out" 2>&1 || fail "the list is served without TLS"
nbdinfo --list "nbds://localhost:$port/?tls-certificates=$tmp/host2" >"$tmp/list.out"
grep -q 'vm1@current' "$tmp/list.out" || fail "no list: $(cat "$tmp/list.out")"
qemu-io --object "tls-creds-x509,id=tls,dir=$tmp/host2,endpoint=client" --image-opts \
    "driver=nbd,host=localhost,port=$port,export=vm1;writer=b,tls-creds=tls" \
    -c "write -P 7 0 64k" -c flush >"$tmp/qemu-io.out" 2>&1 || fail "qemu: $(cat "$tmp/qemu-io.out")"

# Other users of this host.
stop_nbdkit tls
serve
chmod 711 "$tmp"
as_another() { setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }
as_another test -e "$tmp/server.socket" || fail "the test's own folder is out of that user's reach"
! as_another nbdinfo "$(uri vm1)" >"$tmp/other.out" 2>&1 || fail "another user is served"
grep -qi "permission denied" "$tmp/other.out" || fail "$(cat "$tmp/other.out")"
control=$(head -n 1 "$store"/servers/*)
! as_another $python -c 'import socket, sys
socket.socket(socket.AF_UNIX).connect(sys.argv[1])' "$control" >"$tmp/other.out" 2>&1 ||
    fail "another user reaches the control socket"
grep -qi "permission denied" "$tmp/other.out" || fail "$(cat "$tmp/other.out")"
stop_nbdkit
