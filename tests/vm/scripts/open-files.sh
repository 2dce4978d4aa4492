# A module opens 2,000 files and never closes them: `check` says nothing before, and then how many; so does the daemon.
mkdir /tmp/files
for i in $(seq 2000); do : >/tmp/files/$i; done
asked() { python3 -m ebpfwatch check --all >/results/$1 2>&1; grep -A1 'files without a process' /results/$1; }
asked before | grep -q '^  OK ' || wrong "files without a process before there were any: $(asked before)"
insmod causes.ko path=/tmp/files/ cause=files_leaked count=2000 || exit 3
echo 1 >/sys/module/causes/parameters/go
least=$(asked after | sed -n 's/^  WARN .*process: \([0-9]*\) to .*/\1/p')
[ "${least:-0}" -ge 1500 ] && [ $least -le 2100 ] || wrong "2,000 files are held, and check says: $(asked after)"
# As a process of its own would have them: nobody is accused.
python3 -c 'import time; files = [open("/dev/null") for _ in range(1000)]; time.sleep(60)' &
sleep 10
again=$(asked owned | sed -n 's/^  WARN .*process: \([0-9]*\) to .*/\1/p')
[ "${again:-9999}" -le $((least + 100)) ] || wrong "1,000 descriptors of a process were taken for the kernel's: $again"
watch
await 'files_beyond_descriptors [1-9]'
finish
beyond=$(metric ebpfwatch_files_beyond_descriptors)
[ "${beyond%.*}" -ge 2000 ] || wrong "the daemon says $beyond files beyond descriptors"
[ ! -s /results/why ]
