/*
 * Hooked nowhere: run by BPF_PROG_TEST_RUN only.
 *
 * A page of kernel memory that plays an ext4 inode, so that the self-test and the model-based test can
 * drive the loaded programs through any history on an object that nobody else uses.
 * Invariant: the page is ours; a verdict on its address is a test.
 */
#define SELFTEST_BYTES 4096

struct selftest_page {
	u64 word[SELFTEST_BYTES / 8];
};

BPF_ARRAY(selftest_page, struct selftest_page, 1);
/* The page's address, and the task that asked: it holds the locks of the inode that is played. */
BPF_ARRAY(selftest_address, u64, 2);

int find_selftest_page(struct bpf_raw_tracepoint_args *ctx)
{
	u32 zero = 0, one = 1;
	struct selftest_page *page = selftest_page.lookup(&zero);
	u64 *address = selftest_address.lookup(&zero);
	u64 *task = selftest_address.lookup(&one);

	if (page && address)
		*address = (u64)page;
	if (task)
		*task = bpf_get_current_task();
	return 0;
}
