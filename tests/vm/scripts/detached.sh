# No BTF in the kernel, no headers on the machine: a BTF file is all there is.
python3 -m ebpfwatch check --btf /payload/kernel.btf >/results/check
code=$?
[ $code -le 1 ] || wrong "check --btf: $code"
sed -i 's#  btf: ""#  btf: /payload/kernel.btf#' /tmp/config.yaml
watch
die benign
confirmed
finish
kill $daemon
wait $daemon
# What is no BTF, and a wish that this kernel cannot grant, are refused in one line.
sed -i 's#/payload/kernel.btf#/payload/run.sh#' /tmp/config.yaml
start err-nonsense
wait $daemon
[ $? = 78 ] || wrong "what is no BTF did not end with 78"
sed -i 's#  btf: .*#  btf: ""#; s#  rungs: ""#  rungs: "alloc=fentry"#' /tmp/config.yaml
start err-refused
wait $daemon
[ $? = 69 ] || wrong "alloc=fentry did not end with 69"
grep -q 'hooks.rungs asks for alloc=fentry' /results/err-refused || wrong "the refusal does not say why"
[ ! -s /results/why ]
