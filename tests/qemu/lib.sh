# Shell functions for the steps that run inside the guest. `cargo xtask vm` puts this before every step.

device=vmw_pvrdma0
number=$(sed -n 's/.*pvrdma.guest=\([0-9]*\).*/\1/p' /proc/cmdline)
port_dir=/sys/class/infiniband/$device/ports/1
# The address of this guest, the number and the address of the one with the servers, and the folder with the programs
# of tests/c.
address=192.168.77.$number
serving=1
first=192.168.77.1
own=/run/job/bin
client_log=/tmp/client.log

fail() {
    echo "FAIL: $*"
    exit 1
}

# Waits until a process of this guest listens on a TCP port.
wait_listen() {
    hex=$(printf ':%04X' "$1")
    for _ in $(seq 200); do
        grep -q "$hex [0-9A-F:]* 0A " /proc/net/tcp /proc/net/tcp6 2>/dev/null && return 0
        sleep 0.05
    done
    fail "nothing listens on port $1"
}

# Waits until the driver has bound the address of eth0 as GID 1.
wait_gid() {
    for _ in $(seq 200); do
        gid=$(cat $port_dir/gids/1 2>/dev/null)
        case $gid in 0000:0000:0000:0000:0000:ffff:*) return 0 ;; esac
        sleep 0.05
    done
    fail "no GID 1 (have: $(cat $port_dir/gids/0 $port_dir/gids/1 2>&1))"
}

# pair PORT PROGRAM ARGS...: the same program twice, the second one told to connect to the first. Each has a CPU of
# its own: the guest's scheduler likes to put both on one, and two that poll then wait a tick for each other.
pair() {
    port=$1
    shift
    taskset -c 0 "$@" >/tmp/first.log 2>&1 &
    server=$!
    wait_listen "$port"
    taskset -c 1 "$@" 127.0.0.1
    second=$?
    wait $server
    code=$?
    echo "--- first process (exit $code) ---"
    cat /tmp/first.log
    [ $second = 0 ] && [ $code = 0 ] || fail "exit codes $code and $second"
}

# connect PROGRAM ARGS...: the program as client of the first guest, tried again until its server is there.
connect() {
    for _ in $(seq 100); do
        "$@" $first >$client_log 2>&1
        code=$?
        grep -qiE "couldn't connect|unable to (init|open)|connection refused|nobody is there" $client_log || break
        sleep 0.1
    done
    cat $client_log
    [ $code = 0 ] || fail "exit code $code"
    sed -n -e 's/.* iters in .* = \(.*usec\/iter\).*/note: \1/p' -e 's/^ *\([0-9]\{1,\} .*\)/note: \1/p' \
        $client_log | grep -v bytes | head -n 1
}

# serve PROGRAM ARGS...: starts a server whose clients come by rdma_cm, and says so when it listens.
# `served` waits for its end.
serve() {
    "$@" >/tmp/first.log 2>&1 &
    server=$!
    for _ in $(seq 200); do
        if rdma resource show cm_id | grep -q LISTEN; then
            : >/run/job/listens.$STEP
            return 0
        fi
        sleep 0.05
    done
    cat /tmp/first.log
    fail "it does not listen: $*"
}

served() {
    wait $server
    code=$?
    echo "--- server (exit $code) ---"
    cat /tmp/first.log
    [ $code = 0 ] || fail "exit code $code of the server"
}

# client PROGRAM ARGS...: the program, when the server of this step listens in its guest, which may be this one.
client() {
    for _ in $(seq 400); do
        [ -e /run/jobs/guest$serving/listens.$STEP ] && break
        sleep 0.05
    done
    "$@" || fail "exit code $?: $*"
}

# load GROUP: the modules of a list that `cargo xtask vm` has made (xtask/src/vm/kernel.rs), unless they are there.
load() {
    for module in $(cat /run/modules/$1); do
        [ -e /sys/module/$module ] || /run/busybox insmod /run/modules/$module.ko || fail "insmod $module"
    done
}

# Puts the last line of a file into the table.
note() {
    sed -n '$s/^/note: /p' "$1"
}

# The last pingpong's bandwidth and time, for the table.
pingpong_note() {
    sed -n 's/.* iters in .* = \(.*usec\/iter\).*/note: \1/p' /tmp/first.log | head -n 1
}

# Runs a perftest program as a pair and notes its last line of figures.
perftest() {
    pair 18515 "$@" -d $device -x 1 -F | tee /tmp/perftest.log
    grep -q FAIL /tmp/perftest.log && exit 1
    sed -n 's/^ *\([0-9]\{1,\} .*\)/note: \1/p' /tmp/perftest.log | head -n 1
}

# Fails unless libibverbs loads the provider this guest is about.
check_provider() {
    loaded=$(LD_DEBUG=files ibv_devices 2>&1 | sed -n 's/.*calling init: \(.*libvmw_pvrdma-rdmav[0-9]*\.so\).*/\1/p')
    [ -n "$loaded" ] || fail "libibverbs loads no vmw_pvrdma provider"
    ibv_devices | grep -q $device || fail "ibv_devices lists no $device"
    if [ -f /run/job/provider.so ]; then
        cmp "$loaded" /run/job/provider.so || fail "$loaded is not the file under test"
    fi
    echo "note: $loaded"
}
