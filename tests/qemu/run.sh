# Runs the steps inside the guest, chrooted into the host's files. `cargo xtask vm` writes the list and the steps
# into the job folder beside this file and reads the results from there.

job=/run/job
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C HOME=/tmp
cd /tmp || exit 1

now_ms() {
    read -r up _ </proc/uptime
    echo "${up%.*}${up#*.}0"
}

# Steps with the same number begin together in all guests: a server must not find the client of another step.
meet() {
    : >$job/reached.$1
    for guest in /run/jobs/guest*; do
        until [ -e "$guest/reached.$1" ]; do sleep 0.05; done
    done
}

# As an administrator would install it: the file into the providers' folder, and its line for libibverbs.
if [ -f $job/provider.so ]; then
    folder=$(dirname "$(ls /usr/lib/*/libibverbs/libvmw_pvrdma-rdmav*.so | head -n 1)")
    for file in "$folder"/libvmw_pvrdma-rdmav*.so; do
        rm "$file"
        cp $job/provider.so "$file"
    done
    mkdir -p /etc/libibverbs.d
    echo 'driver vmw_pvrdma' >/etc/libibverbs.d/vmw_pvrdma.driver
fi

now_ms >$job/boot.ms
while read -r index limit; do
    meet "$index"
    start=$(now_ms)
    STEP=$index timeout -k 2 "$limit" sh $job/step$index.sh >$job/step$index.log 2>&1 </dev/null
    code=$?
    echo $(($(now_ms) - start)) >$job/step$index.ms
    echo $code >$job/step$index.code
done <$job/steps
dmesg >$job/dmesg.log
