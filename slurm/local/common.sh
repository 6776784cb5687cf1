# Shared by up.sh and down.sh: arguments, and which daemon of this cluster runs.

hosts_mark="# added by slurm/local/up.sh"

fail() {
    echo "error: the local test cluster $1" >&2
    exit 2
}

parse_arguments() {
    state=/tmp/metaser-slurm
    accounting=0
    while (($#)); do
        case $1 in
            --state) state=$(realpath -m "${2:?--state needs a folder}") && shift 2 ;;
            --accounting) accounting=1 && shift ;;
            *) fail "takes --state FOLDER and --accounting, but was given '$1'" ;;
        esac
    done
}

# A file left by a machine that was switched off may name another process by now; a zombie has no command line.
lives() { grep -qa "${1%%-*}" "/proc/$2/cmdline" 2>/dev/null; } # DAEMON PID

pid_of() { # DAEMON: the id of the process that its file in the state folder names, if that still is this daemon
    local pid
    pid=$(cat "$state/$1.pid" 2>/dev/null) && lives "$1" "$pid" && echo "$pid"
}

is_running() { pid_of "$1" >/dev/null; }

start_node() { # NODE
    is_running "slurmd-$1" && return
    mkdir -p "$state/spool/$1"
    slurmd -N "$1" >>"$state/log/slurmd-$1.out" 2>&1 || fail "could not start $1; see $state/log/slurmd-$1.log"
}

stop() { # DAEMON: ask, then force
    local pid second
    pid=$(pid_of "$1") || return 0
    kill "$pid"
    for ((second = 0; second < 100; second++)); do
        lives "$1" "$pid" || return 0
        sleep 0.1
    done
    kill -KILL "$pid"
}
