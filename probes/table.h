/*
 * The table of dying and dead objects: TABLE_BUCKETS buckets of WAYS ways, keyed by the object's
 * address.
 *
 * Invariants: an address is in at most one way; a way is claimed by compare-and-swap where the kernel has
 * it (Linux >= 5.12), so two CPUs never share one.  The key itself says in which state its object is, and
 * every step of a life is a swap of the key: either this step took place in the table, or another CPU had
 * forgotten the object before, so what is forgotten is counted exactly, and no object is ever judged by the
 * state of the one that took its way.  Before Linux 5.12 that holds but for two CPUs within the few
 * instructions of swap_key().  `seal` tells an entry written by one CPU from one torn between two.
 */
#include "maps.h"

#define NO_WAY WAYS

static __always_inline u32 hash_address(u64 address)
{
	/* Fibonacci hashing: neighbouring objects of a slab page land far apart. */
	return (u32)((address >> 4) * 0x9E3779B97F4A7C15ULL >> 32);
}

/*
 * Where an address belongs in an array: the objects of one slab page (32 KiB, some 1 KiB each) are
 * neighbours there, too, and the slab pages lie far apart.  Objects die and are born in the order
 * of their slabs, so the lines and the pages of the table that are in use stay few: spread evenly,
 * each look-up missed the cache and the TLB, and cost five times as much (docs/performance.md).
 */
static __always_inline u32 place_of(u64 address)
{
	return hash_address(address >> 11) << 5 | (address >> 10 & 31);
}

static __always_inline struct bucket *bucket_of(u64 object)
{
	u32 index = place_of(object) & (TABLE_BUCKETS - 1);

	return table.lookup(&index);
}

static __always_inline u32 find_way(struct bucket *bucket, u64 object)
{
	u64 key = object | OBJECT_BITS;

	if ((bucket->object[0] | OBJECT_BITS) == key)
		return 0;
	if ((bucket->object[1] | OBJECT_BITS) == key)
		return 1;
	if ((bucket->object[2] | OBJECT_BITS) == key)
		return 2;
	if ((bucket->object[3] | OBJECT_BITS) == key)
		return 3;
	return NO_WAY;
}

/* A way's key, and its life: whole, for Linux 4.19 forgets the bound of an offset that lay on the stack. */
static __always_inline u64 *key_in(struct bucket *bucket, u32 way)
{
	u64 *key;

	BOUND(way, WAYS);
	key = &bucket->object[way];
	WHOLE(key);
	return key;
}

static __always_inline struct life *life_in(struct bucket *bucket, u32 way)
{
	struct life *life;

	BOUND(way, WAYS);
	life = &bucket->life[way];
	WHOLE(life);
	return life;
}

/* The key of this way if it is still the object's, else 0: another CPU may have taken it meanwhile. */
static __always_inline u64 key_of(struct bucket *bucket, u32 way, u64 object)
{
	u64 key = *(volatile u64 *)key_in(bucket, way);

	return (key | OBJECT_BITS) == (object | OBJECT_BITS) ? key : 0;
}

static __always_inline u32 state_of(u64 key)
{
	if (!key)
		return STATE_ABSENT;
	if (key & OBJECT_DEAD)
		return STATE_FREED;
	return key & OBJECT_QUEUED ? STATE_QUEUED : STATE_EVICTING;
}

static __always_inline bool swap_key(u64 *key, u64 old, u64 new)
{
#ifdef HAVE_CMPXCHG
	return __sync_val_compare_and_swap(key, old, new) == old;
#else
	/*
	 * No compare-and-swap before Linux 5.12: another CPU may take the way in between, and what it
	 * writes, or what we write, is overwritten.  Then the seal is broken, or count_if_taken() finds
	 * it.
	 */
	if (*key != old)
		return false;
	*key = new;
	return true;
#endif
}

static __always_inline u64 seal_of(u64 object, const struct life *life)
{
	return object ^ (life->ino << 17) ^ ((u64)life->generation << 32) ^ life->evicted.ns;
}

/* The way that should make room: an empty one, else a dead one, else the first choice. */
static __always_inline u32 choose_way(struct bucket *bucket, u32 first)
{
	u32 dead = NO_WAY;

#pragma unroll
	for (u32 i = 0; i < WAYS; i++) {
		u32 way = (first + i) & (WAYS - 1);

		if (bucket->object[way] == 0)
			return way;
		if (dead == NO_WAY && bucket->object[way] & OBJECT_DEAD)
			dead = way;
	}
	return dead == NO_WAY ? first : dead;
}

/* After an entry was written: whether another CPU has overwritten its key since, as above. */
static __always_inline void count_if_taken(struct bucket *bucket, u32 way, u64 object)
{
#ifndef HAVE_CMPXCHG
	if (!key_of(bucket, way, object))
		count(COUNTER_TORN, 1);
#endif
}

/* Claims a way for `key`, forgetting what was there; NO_WAY if other CPUs were faster. */
static __always_inline u32 claim_way(struct bucket *bucket, u64 key)
{
	u32 first = (hash_address(key) >> 30) & (WAYS - 1);

#pragma unroll
	for (int attempt = 0; attempt < 2; attempt++) {
		u32 way = choose_way(bucket, first) & (WAYS - 1);
		u64 old = bucket->object[way];

		if (!swap_key(&bucket->object[way], old, key))
			continue;
		if (old & OBJECT_DEAD)
			count(COUNTER_FORGOTTEN_DEAD, 1);
		else if (old)
			count_dying_lost(COUNTER_FORGOTTEN_DYING);
		return way;
	}
	return NO_WAY;
}
