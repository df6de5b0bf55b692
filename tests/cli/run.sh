#!/usr/bin/env bash
# Transcripts of the command line: tests/cli/run.sh [--rewrite] [FILE.txt...]
#
# A transcript has commands, each followed by what it must print and how it must end:
#
#   $ tplstore volume show nothing      a command, for bash, in an empty folder
#   ...                                 what it writes to stdout
#   ! tplstore: nothing: no such ...    what it writes to stderr
#   ? 1                                 its exit status, when that is not 0
#
# Comments begin with # and reach to the next command; lines of stdout that begin with one of $!?#
# have a backslash before it. In what is expected, runs of blanks count
# as one, a line "..." stands for any lines, and these for what differs from run to run:
#
#   <dir> the folder   <uuid>   <sha256>   <time>   <age> as "5s"   <pid>   <host>   <size> as "1.5 MiB"
#   <n> a number
#   <any> anything
#
# Commands can use what tests/functions.sh has, and what stands below. --rewrite writes what does
# not match anew: look at the difference before you keep it. The tool is $TPLSTORE_BIN, or
# build/release's. Ends with 77 when a transcript needs what is not there.
set -euo pipefail
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ -z "${TPLSTORE_BIN-}" ] || export TPLSTORE=$TPLSTORE_BIN

rewrite=
if [ "${1-}" = --rewrite ]; then
    rewrite=1
    shift
fi
[ $# -gt 0 ] || set -- "$folder"/*.txt

# --- for transcripts, which alone call these

# hold VOLUME: a VM that has the volume of the running server, until let_go.
# shellcheck disable=SC2317
hold() {
    start_client write "$(uri "$1")"
    held=$client
}
# shellcheck disable=SC2317
let_go() {
    kill -9 "$held"
    wait "$held" 2>/dev/null || true
    # The server notices a moment later.
    await 20 is_let_go "$1"
}
# shellcheck disable=SC2317
is_let_go() {
    [ "$(tplstore volume show "$1" --json | jq .attached)" = false ]
}

# read_version EXPORT...: somebody who reads these from the running server, until stop_reading.
# shellcheck disable=SC2317
read_version() {
    local uris=() name
    for name; do uris+=("$(uri "$name")"); done
    start_client read "${uris[@]}"
    reader=$client
}
# shellcheck disable=SC2317
stop_reading() {
    kill -9 "$reader"
    wait "$reader" 2>/dev/null || true
}

# put VOLUME OFFSET LENGTH [CHARACTER]: writes so many of these, or zeroes, through the server if one
# runs, else through one of its own.
# shellcheck disable=SC2317
put() {
    local name=server
    if [ -z "${nbdkit_pid[server]-}" ]; then
        name=writer
        start_nbdkit writer "$TPLSTORE_PLUGIN" "$store"
    fi
    $python - "$(uri "$1" "$name")" "$2" "$3" "${4-}" <<'END'
import nbd, sys
uri, offset, length, character = sys.argv[1:]
client = nbd.NBD()
client.connect_uri(uri)
if character:
    client.pwrite(character.encode() * int(length), int(offset))
else:
    client.zero(int(length), int(offset))
client.flush()
client.shutdown()
END
    [ "$name" = server ] || stop_nbdkit writer
    await 20 is_let_go "$1"
}

# --- the runner

# What a line of a transcript looks like to `[[ =~ ]]`.
pattern_of() {
    local line=$1
    if [ "$line" = ... ]; then
        printf '(.*\n)?'
        return
    fi
    sed -E -e 's/[][\\.*^$+?(){}|]/\\&/g' -e 's/ +/ +/g' \
        -e 's/<uuid>/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/g' \
        -e 's/<sha256>/[0-9a-f]{64}/g' \
        -e 's/<time>/[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z/g' \
        -e 's/<age>/[0-9]+[smhdy]/g' -e 's/<(n|pid)>/[0-9]+/g' \
        -e 's/<size>/[0-9.]+ [KMGTPE]?i?B/g' \
        -e 's/<host>/[^ "]+/g' -e 's/<any>/[^\n]*/g' <<<"$line"
    printf x  # or $() drops the newline
}

# What a command did, in the form of a transcript.
perform() {
    local command=$1 status=0
    eval "$command" >"$tmp/stdout" 2>"$tmp/stderr" </dev/null || status=$?
    {
        sed 's/^[$#!?]/\\&/' "$tmp/stdout"
        sed 's/^/! /' "$tmp/stderr"
        [ $status = 0 ] || echo "? $status"
    } | sed -e "s|$PWD|<dir>|g" >"$tmp/actual"
}

with_placeholders() {
    sed -E -e 's/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/<uuid>/g' \
        -e 's/\b[0-9a-f]{64}\b/<sha256>/g' \
        -e 's/[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z/<time>/g' \
        -e 's/(pid"?:? |by server )[0-9]+/\1<pid>/g' -e "s/\\b$(hostname)\\b/<host>/g"
}

# Reads a transcript from stdin; writes it with what really happened to fd 3.
play() {
    local line command='' expected='' pattern='' failures=0 comment='' blank=''
    local end=$'$ \x01'
    finish_command() {
        [ -n "$command" ] || return 0
        perform "$command"
        if [[ "$(cat "$tmp/actual"; printf x)" =~ ^${pattern}x$ ]]; then
            printf '%s' "$expected" >&3
        else
            with_placeholders <"$tmp/actual" >&3
            failures=$((failures + 1))
            [ -n "$rewrite" ] || {
                echo "--- $name: \$ $command"
                diff -u --label expected --label actual <(printf '%s' "$expected") \
                    <(with_placeholders <"$tmp/actual") | tail -n +3 || true
            } >&2
        fi
    }
    while IFS= read -r line; do
        case $line in
        '$ '*)
            finish_command
            printf '%s' "$comment$blank" >&3
            comment='' blank=''
            [ "$line" != "$end" ] || break
            command=${line#'$ '} expected='' pattern=''
            echo "$line" >&3
            ;;
        '')  # of the comment or the output that follows
            blank+=$'\n'
            ;;
        '#'*)
            comment+=$blank$line$'\n' blank=''
            ;;
        *)
            [ -z "$comment" ] || fail "$name: output behind a comment: $line"
            expected+=$blank$line$'\n'
            line=$(pattern_of "$line")
            pattern+=$blank${line%x} blank=''
            ;;
        esac
    done < <(cat; echo "$end")
    [ $failures = 0 ] || [ -n "$rewrite" ] || fail "$name: $failures commands did something else"
}

# One transcript, in a process of its own.
play_file() (
    # shellcheck source=SCRIPTDIR/../functions.sh
    . "$folder/../functions.sh"
    name=$(basename "$1")
    # "# needs: nbdkit jq" in the first comment
    read -r -a needed < <(sed -n 's/^# needs: *//p' "$1"; echo) || true
    requires "${needed[@]+"${needed[@]}"}"
    mkdir "$tmp/work"
    cd "$tmp/work"
    store=$PWD/store
    export TPLSTORE_STORE=$store
    play <"$1" 3>"$tmp/new"
    [ -z "$rewrite" ] || cat "$tmp/new" >"$1"
    echo "ok: $name"
)

result=0
for file; do
    status=0
    play_file "$(realpath "$file")" || status=$?
    [ $status = 0 ] || [ $result = 1 ] || result=$status
    [ $status = 0 ] || [ $status = 77 ] || result=1
done
exit $result
