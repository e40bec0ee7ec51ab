# Shell functions for guests that are hosts of a fabric, each with software RoCE as its adapter, beside those of wire.sh.

export PVRDMA_LINK=/tmp/link
# Programs of tests/c take the first device else, which is the adapter.
export PVRDMA_DEVICE=$device
# First guests of the hosts, for connections by address.
guest=127.$number.82.1 first_guest=127.$serving.82.1
# For tests/c/apart.c: both go on until this is there.
enough=/run/jobs/guest$serving/enough.$STEP
load="load -g $gid -p 18515 -u $enough"

pvrdma() {
    /run/job/bin/pvrdma "$@"
}

add_adapter() {
    load software_roce
    [ -e /sys/class/infiniband/rxe0 ] || rdma link add rxe0 type rxe netdev eth0 || fail 'no software RoCE'
}

# The fabric is made as README.md has it: the first host adds the second one, which takes the file and joins.
begin_hosts() {
    add_adapter
    if [ $number = 1 ]; then
        pvrdma link init --name first --address $address && pvrdma link add other --address 192.168.77.2 || fail 'no fabric'
        cp other.join /run/job/new && mv /run/job/new /run/job/other.join
    else
        until [ -e /run/jobs/guest1/other.join ]; do sleep 0.1; done
        pvrdma link join /run/jobs/guest1/other.join || fail 'it does not join'
    fi
    setsid /run/job/bin/pvrdma link run --hca rxe0 $gateway_options >$gateway_log 2>&1 </dev/null &
    echo $! >/tmp/gateway
    goes_over hca
}

# goes_over WHAT: waits until the link does, and says what there is else.
goes_over() {
    for _ in $(seq 600); do
        pvrdma link status --json >/tmp/status 2>&1 && grep -q "\"over\": \"$1\"" /tmp/status && break
        sleep 0.1
    done
    grep -q "\"over\": \"$1\"" /tmp/status && return
    cat /tmp/status $gateway_log
    fail "the link does not go over $1"
}

# rxe_has_sent PACKETS: the adapter has sent so many at least.
rxe_has_sent() {
    sent=$(cat /sys/class/infiniband/rxe0/ports/1/hw_counters/sent_pkts)
    echo "note: $sent packets by the adapter"
    [ "$sent" -ge "$1" ] || fail 'too few'
}

# What follows is of the adapter itself, without `pvrdma run`.
by_itself() {
    side=rxe device=rxe0 gid=1 run=
}

# under_load COMMAND: two programs write, read, send and add without end, when this is done; then the link has to go
# over TCP, and they go on for a while. `served` waits for the first one.
under_load() {
    $run $own/apart $load >/tmp/first.log 2>&1 &
    server=$!
    for _ in $(seq 200); do
        grep -q running /tmp/first.log && break
        sleep 0.1
    done
    grep -q running /tmp/first.log || { cat /tmp/first.log; pvrdma status; fail 'it does not run'; }
    eval "$1" || fail "exit code $?: $1"
    goes_over tcp
    cat $gateway_log
    sleep 3
    : >$enough
}

# Nothing of it is left, and nobody complained.
end_hosts() {
    end_gateway
    rdma link delete rxe0 || fail 'it does not go'
    [ -z "$(ls /dev/shm)" ] || fail "left: $(ls /dev/shm)"
    ! dmesg | grep -E 'WARNING:|BUG:|Oops:' || fail 'the kernel complains'
}
