# Shell functions for guests that meet on a wire, beside those of lib.sh. A step says before it which this guest is:
#
#   side=rxe        a machine with an adapter: Linux's software RoCE, on eth0
#   side=stand-in   a machine without one: guests of `pvrdma run`, and a gateway that owns the wire
#   side=host       a host of a fabric: guests of `pvrdma run`, and a gateway with Linux's software RoCE as its adapter
#   serving=N       the number of the guest with the servers of this step
#   provider=WHICH  what `pvrdma run` takes
#   gateway_options what `pvrdma link run` takes beside the address

first=192.168.77.$serving
case $side in
rxe)
    device=rxe0 gid=1 run= kind=-l
    ;;
stand-in)
    device=vmw_pvrdma0 gid=2 kind= run="/run/job/bin/pvrdma run --provider $provider --"
    ;;
host)
    device=vmw_pvrdma0 gid=1 kind= run="/run/job/bin/pvrdma run --provider $provider --"
    . /run/job/adapters.sh
    ;;
esac
gateway_log=/run/job/gateway.log

# A step that ended in the middle leaves this.
tc qdisc delete dev eth0 root 2>/dev/null

# The wire of this side is there, before anything else.
begin_wire() {
    case $side in
    rxe)
        load software_roce
        rdma link add rxe0 type rxe netdev eth0 || fail 'no software RoCE'
        ;;
    stand-in)
        setsid /run/job/bin/pvrdma link run --roce-wire "$address" $gateway_options >$gateway_log 2>&1 </dev/null &
        echo $! >/tmp/gateway
        for _ in $(seq 100); do
            grep -q ':12B7 ' /proc/net/udp /proc/net/udp6 && break
            sleep 0.1
        done
        grep -q ':12B7 ' /proc/net/udp /proc/net/udp6 || { cat $gateway_log; fail 'nobody has UDP port 4791'; }
        ;;
    esac
    $run ibv_devinfo -v -d $device | tee /tmp/info
    grep -q PORT_ACTIVE /tmp/info || fail 'no active port'
    grep -q 'active_mtu:[[:space:]]*1024' /tmp/info || fail 'another MTU'
    grep -q "GID\[ *$gid\]:[[:space:]]*::ffff:$address, RoCE v2" /tmp/info || fail "no GID $gid"
}

# Nothing of it is left, and nobody complained.
end_wire() {
    case $side in
    rxe)
        rdma link delete rxe0 || fail 'it does not go'
        note_warnings
        ;;
    stand-in)
        end_gateway
        ;;
    esac
    true
}

# Software RoCE is not our driver; but whoever reads the table should know.
note_warnings() {
    dmesg | grep -E 'WARNING:|BUG:|Oops:' >/tmp/warnings
    cat /tmp/warnings
    [ ! -s /tmp/warnings ] || echo "note: $(wc -l </tmp/warnings) warnings of this kernel, see its dmesg.log"
}

end_gateway() {
    kill "$(cat /tmp/gateway)" || fail 'the gateway is gone'
    for _ in $(seq 100); do
        [ -e "/proc/$(cat /tmp/gateway)" ] || break
        sleep 0.1
    done
    cat $gateway_log
    # Not there from the beginning: each packet would wait for the host.
    [ ! -e /tmp/wire.pcap ] || cp /tmp/wire.pcap /run/job
    [ ! -e "/proc/$(cat /tmp/gateway)" ] || fail 'the gateway stays'
}

# perftest_at SIZE COUNT PROGRAM ARGS...: one side of a perftest program.
perftest_at() {
    size=$1 count=$2
    shift 2
    set -- $run "$@" -d $device -x $gid -F -s $size -n $count
    if [ $number = $serving ]; then
        "$@" || fail "exit code $?: $*"
    else
        connect "$@"
    fi
}

# crowd PROGRAM ARGS...: one side of four pairs at a time, each with a port of its own.
crowd() {
    pairs=
    for port in 18520 18521 18522 18523; do
        if [ $number = $serving ]; then
            $run "$@" -p $port &
        else
            (client_log=/tmp/client.$port; connect $run "$@" -p $port) &
        fi
        pairs="$pairs $!"
    done
    for pair in $pairs; do
        wait $pair || fail "exit code $?"
    done
}

# As in lib.sh. No netlink tells which guests of `pvrdma run` listen, but a trace does.
serve() {
    rm -f /tmp/trace
    case $side in
    rxe) "$@" >/tmp/first.log 2>&1 & ;;
    *) /run/job/bin/pvrdma run --provider $provider --trace /tmp/trace -- "$@" >/tmp/first.log 2>&1 & ;;
    esac
    server=$!
    for _ in $(seq 200); do
        if rdma resource show cm_id | grep -q LISTEN || grep -q 'cm listen' /tmp/trace 2>/dev/null; then
            : >/run/job/listens.$STEP
            return 0
        fi
        sleep 0.05
    done
    cat /tmp/first.log
    fail "it does not listen: $*"
}

# is_rejected PORT: nobody listens there, and rping is told so. until_asked: the server that listens elsewhere may end.
is_rejected() {
    client true
    timeout 20 $run rping -c -a $first -p "$1" -C 1 >/tmp/client.log 2>&1
    code=$?
    : >/run/job/asked.$STEP
    cat /tmp/client.log
    grep -q REJECTED /tmp/client.log || fail "it was not rejected (exit $code)"
}

until_asked() {
    until [ -e /run/jobs/guest$((3 - number))/asked.$STEP ]; do sleep 0.1; done
    kill $server
}

# bad_wire NETEM...: what leaves eth0 is treated so. good_wire: no longer.
bad_wire() {
    load bad_wire
    tc qdisc replace dev eth0 root netem "$@" || fail "netem $*"
}

good_wire() {
    tc -s qdisc show dev eth0 | tail -n 2
    tc qdisc delete dev eth0 root
}
