# Shell functions for guests that are hosts of a fabric, with software RoCE as their adapters, beside those of wire.sh.

export PVRDMA_LINK=/tmp/link
# Programs of tests/c take the first device else, which is the adapter.
export PVRDMA_DEVICE=$device
# First guests of the hosts, for connections by address.
guest=127.$number.82.1 first_guest=127.$serving.82.1
# For tests/c/apart.c: both go on until this is there.
enough=/run/jobs/guest$serving/enough.$STEP
load_options="load -g $gid -p 18515 -u $enough"

pvrdma() {
    /run/job/bin/pvrdma "$@"
}

add_adapter() {
    load software_roce
    [ -e /sys/class/infiniband/rxe0 ] || rdma link add rxe0 type rxe netdev eth0 || fail 'no software RoCE'
}

# The kernel waits until nobody has it open. A wait that long ends, but not well.
remove_adapter() {
    [ ! -e /sys/class/infiniband/rxe0 ] || timeout 5 rdma link delete rxe0 || fail 'the adapter is not given back'
}

# The fabric is made as README.md has it: the first host adds the second one, which takes the file and joins.
begin_hosts() {
    add_adapter
    if [ $number = 1 ]; then
        pvrdma link init --name first --address $address && pvrdma link add other --address 192.168.77.2 ||
            fail 'no fabric'
        cp other.join /run/job/new && mv /run/job/new /run/job/other.join
    else
        until [ -e /run/jobs/guest1/other.join ]; do sleep 0.1; done
        pvrdma link join /run/jobs/guest1/other.join || fail 'it does not join'
    fi
    setsid /run/job/bin/pvrdma link run --hca rxe0 $gateway_options >$gateway_log 2>&1 </dev/null &
    echo $! >/tmp/gateway
    goes_over hca
}

# goes_over WHAT [SECONDS]: waits until the link does, and says what there is else.
goes_over() {
    for _ in $(seq $((${2:-20} * 10))); do
        pvrdma link status --json >/tmp/status 2>&1 && grep -q "\"over\": \"$1\"" /tmp/status && return
        sleep 0.1
    done
    cat /tmp/status $gateway_log
    fail "the link does not go over $1"
}

# All that was sent to the other host so far went by the adapter: no packet has more than 1024 bytes of it. But for what
# hosts say to each other at first, their guests' addresses.
went_by_adapter() {
    goes_over hca
    ! grep -E 'is gone|not reached' $gateway_log || fail 'the link was lost'
    bytes=$(sed -n 's/.*"bytes_out": \([0-9]*\).*/\1/p' /tmp/status)
    packets=$(cat /sys/class/infiniband/rxe0/ports/1/hw_counters/sent_pkts)
    echo "note: $bytes bytes of frames, $packets packets"
    [ "$packets" -ge $(((bytes - 32768) / 1024)) ] || fail 'too few packets'
}

# What follows is of the adapter itself, without `pvrdma run`.
by_itself() {
    side=rxe device=rxe0 gid=1 run=
}

# Two programs write, read, send and add without end, when the adapter of the first one goes. Then they go on for a
# while, over TCP.
lose_under_load() {
    $run $own/apart $load_options >/tmp/first.log 2>&1 &
    server=$!
    trap 'kill $server 2>/dev/null' EXIT
    for _ in $(seq 200); do
        grep -q running /tmp/first.log && break
        sleep 0.1
    done
    grep -q running /tmp/first.log || { cat /tmp/first.log; fail 'it does not run'; }
    remove_adapter
    goes_over tcp
    sleep 3
    : >$enough
    served
    note /tmp/first.log
}

# lose_as_target PROGRAM ARGS...: the server of a stream in one direction loses its adapter, which it never uses to ask
# for anything.
lose_as_target() {
    "$@" >/tmp/first.log 2>&1 &
    server=$!
    trap 'kill $server 2>/dev/null' EXIT
    wait_listen 18515
    : >/run/job/listens.$STEP
    sleep 3
    kill -0 $server || { cat /tmp/first.log; fail 'it has ended already'; }
    remove_adapter
    goes_over tcp
    kill -0 $server || { cat /tmp/first.log; fail 'it had ended already'; }
    served
}

# Nothing of it is left.
end_hosts() {
    end_gateway
    remove_adapter
    [ -z "$(ls /dev/shm)" ] || fail "left: $(ls /dev/shm)"
    note_warnings
}
