# bash completion of tplstore: commands and options are those of its --help, names those of the store.
# shellcheck shell=bash

# What the tool answers, if it soon does.
_tplstore_ask() {
    timeout 3 "${tool[@]}" "$@" 2>/dev/null </dev/null
}

# The values of a key in the lists that --json prints, which have one in each line.
_tplstore_values() {
    sed -n "s/^ *\"$1\": \"\\{0,1\\}\\([A-Za-z0-9._-]*\\).*/\\1/p" | grep -v '^null$'
}

_tplstore_templates() {
    _tplstore_ask template list --json "${in_store[@]}" | _tplstore_values name
}

_tplstore_volumes() {
    _tplstore_ask volume list --json "$@" "${in_store[@]}" | _tplstore_values name
}

# Versions of a volume, by number and by name.
_tplstore_versions() {
    local list
    list=$(_tplstore_ask version list "$@" --json "${in_store[@]}")
    _tplstore_values name <<<"$list"
    _tplstore_values number <<<"$list"
}

# The columns of a list, which the tool names to who asks for another one.
_tplstore_columns() {
    timeout 3 "${tool[@]}" "$@" --sort . 2>&1 </dev/null | sed -n "s/.*there are //; s/,/ /gp"
}

# What can stand for a word of the usage, like VOLUME, in a command; one a line. "files" and "folders"
# are the shell's to find.
_tplstore_candidates() {
    local what=$1 command=$2 word
    case "$command:$what" in
    *:DIR) echo folders ;;
    init:STORE) echo folders ;;
    *:FILE | *:SOURCE | *:PATH) echo files ;;
    *:FORMAT)
        if [ "$command" = "template import" ]; then
            printf '%s\n' raw qcow2 vmdk vhdx vdi
        else
            printf '%s\n' raw qcow2 increment
        fi ;;
    "tier add:KIND") printf '%s\n' ssd local ;;
    *:COLUMN | *:COLUMNS)
        # shellcheck disable=SC2086
        for word in $(_tplstore_columns $command); do echo "${value%"${value##*,}"}$word"; done ;;
    "template import:NAME" | "volume create:NAME" | "version create:NAME") ;;  # a new one
    "volume restore:NAME") _tplstore_volumes --removed ;;
    "volume rename:OLD") _tplstore_volumes ;;
    config:KEY) echo keep ;;
    init:HOW) echo refuse-foreign ;;
    *export:METHOD) echo zstd ;;
    *import:METHOD) echo none ;;
    "volume create:TEMPLATE" | "--template:"*) _tplstore_templates ;;
    template*:NAME) _tplstore_templates ;;
    boot*:NAME) _tplstore_templates; _tplstore_volumes ;;
    *:VOLUME | *:VOLUME@* | volume*:NAME)
        if [[ $value == *@* ]]; then
            _tplstore_versions "${value%%@*}" | sed "s/^/${value%%@*}@/"
        elif [[ $what == *@* ]]; then
            _tplstore_volumes | sed 's/$/@/'
        else
            _tplstore_volumes
        fi ;;
    "version rm:VERSION")
        if [[ $value == *@* || -z $first || $first == *@* ]]; then
            _tplstore_candidates VOLUME@ "$command"
        else
            _tplstore_versions "$first"
        fi ;;
    "version restore:VERSION") [ -z "$first" ] || _tplstore_versions "${first%%@*}" --removed ;;
    *:VERSION | *:FROM)
        [ "$expects" != --since ] || echo template
        [ -z "$first" ] || _tplstore_versions "${first%%@*}" ;;
    "version diff:TO")
        echo current
        [ -z "$first" ] || _tplstore_versions "${first%%@*}" ;;
    esac
}

_tplstore() {
    local IFS=$' \t\n'
    local -a typed tool in_store=() command=() options=() groups=() positional=()
    local -A takes=()
    COMPREPLY=()
    local word current value first='' line count=0 what=''

    # Not COMP_WORDS, which a @ or a = has divided.
    read -r -a typed <<<"${COMP_LINE:0:COMP_POINT}"
    current=''
    [[ "${COMP_LINE:0:COMP_POINT}" == *[[:space:]] ]] || {
        current=${typed[-1]}
        unset 'typed[-1]'
    }
    tool=("${typed[0]/#\~\//$HOME/}")

    # What the command knows that was typed so far.
    _tplstore_read_help() {
        local in_commands='' line
        options=() groups=() takes=() positional=()
        while IFS= read -r line; do
            if [[ $line =~ ^[Ss][Uu][Bb][Cc][Oo][Mm][Mm][Aa][Nn][Dd][Ss]: ]]; then
                in_commands=1
            elif [[ -n $in_commands && $line =~ ^\ +([a-z][a-z-]*) ]]; then
                groups+=("${BASH_REMATCH[1]}")
            elif [[ $line =~ ^\ +((-[A-Za-z]),?\ *)?(--[a-z][a-z-]*)(\ ([A-Z][A-Z@]*))?($|\ ) ]]; then
                options+=("${BASH_REMATCH[3]}")
                takes[${BASH_REMATCH[3]}]=${BASH_REMATCH[5]}
                [ -z "${BASH_REMATCH[2]}" ] || takes[${BASH_REMATCH[2]}]=${BASH_REMATCH[5]}
            elif [[ $line =~ ^Usage:\ [^[]*(\[OPTIONS\]|\[options\])?(.*)$ ]]; then
                read -r -a positional <<<"${BASH_REMATCH[2]}"
            fi
        done < <(_tplstore_ask "${command[@]}" --help)
    }
    _tplstore_read_help

    # Which command it is, and what the word is that is being typed.
    local expects=''
    for word in "${typed[@]:1}"; do
        if [ -n "$expects" ]; then
            case $expects in -s | --store | --tier-state) in_store+=("${expects/#-s/--store}" "$word") ;; esac
            expects=''
        elif [[ $word == -*=* ]]; then
            case $word in --store=* | --tier-state=*) in_store+=("$word") ;; esac
        elif [[ $word == -* ]]; then
            [ -z "${takes[$word]-}" ] || expects=$word
        elif [ ${#groups[@]} -gt 0 ]; then
            [[ " ${groups[*]} " == *" $word "* ]] || return 0
            command+=("$word")
            _tplstore_read_help
        else
            [ $count -gt 0 ] || first=$word
            count=$((count + 1))
        fi
    done
    local i
    for ((i = 1; i < ${#in_store[@]}; i++)); do
        in_store[i]=${in_store[i]/#\~\//$HOME/}
    done

    local cut='' choices
    value=$current
    if [ -n "$expects" ]; then
        what=${takes[$expects]}
    elif [[ $current == --*=* ]]; then
        expects=${current%%=*}
        what=${takes[$expects]-}
        value=${current#*=}
        cut=$expects=
    elif [[ $current == -* ]]; then
        choices=$(printf '%s\n' "${options[@]}")
    elif [ ${#groups[@]} -gt 0 ]; then
        choices=$(printf '%s\n' "${groups[@]}")
    elif [ ${#positional[@]} -gt 0 ]; then
        [[ $count -lt ${#positional[@]} || ${positional[-1]} != *... ]] ||
            count=$((${#positional[@]} - 1))
        what=${positional[count]-}
        what=${what//[!A-Z@]/}
    fi
    if [ -n "$what" ]; then
        case $expects in
        --template) choices=$(_tplstore_templates) ;;
        --kind) choices=$(printf '%s\n' ssd local) ;;
        *) choices=$(_tplstore_candidates "$what" "${command[*]}") ;;
        esac
    fi

    case ${choices-} in
    files | folders)
        local kind=-f
        [ "$choices" = files ] || kind=-d
        compopt -o filenames 2>/dev/null
        while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen $kind -- "$value")
        return ;;
    esac
    # What is before the last character that divides words is not asked for.
    local text=$cut$value prefix='' character
    for character in @ = :; do
        [[ $COMP_WORDBREAKS == *$character* && $text == *$character* ]] || continue
        local before=${text%"$character"*}$character
        [ ${#before} -le ${#prefix} ] || prefix=$before
    done
    while IFS= read -r line; do
        [ -n "$line" ] || continue
        line=$cut$line
        COMPREPLY+=("${line#"$prefix"}")
    done < <(compgen -W "${choices-}" -- "$value")
    [[ ${COMPREPLY[0]-} != *@ ]] || compopt -o nospace 2>/dev/null
}

complete -F _tplstore tplstore
