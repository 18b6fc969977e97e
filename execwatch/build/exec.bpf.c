// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * The kernel half: one record for each program that starts; if asked for, also for
 * each attempt that fails and each process that starts or ends.
 *
 * Compiled by BCC without kernel headers. No kernel structure is known here:
 * the offsets of their members come from the kernel's BTF and lie, with all
 * else that can differ from one tracer to the next, in the map `config`. So one
 * compiled image serves every kernel and every filter. That map is frozen before
 * programs are loaded: the verifier reads it (since Linux 5.5), and takes out of a
 * program what the tracer did not ask for.
 *
 * What both halves have to agree on is in record.h, which is made from wire.py.
 */
#include <linux/types.h>
#include "record.h"

/* What BCC tells the kernel. */
#define BPF_LICENSE Dual MIT/GPL

#define INLINE static __always_inline

/* What of an exec's record has a fixed place. */
#define EXEC_HEAD (sizeof(struct record) + sizeof(struct context))

/* A record is put together here, then copied into the ring in one go. */
struct scratch {
    struct record record;
    char data[2 * PATH_SIZE_MAX + ARGV_SIZE_MAX];
};

/* Where a walk along a path is: the entry, its mount, and that mount's root. And a copy of a part
 * of the one or the other, see READ_BLOCK. */
struct walk {
    u64 dentry;
    u64 mount;
    u64 root;
    char block[BLOCK_SIZE_MAX];
};

/* An exec has more: what was captured, and five paths and the environment besides. */
#define NAMES_MAX (2 * PATH_SIZE_MAX)
/* A path that is walked: Python refuses what is longer than the kernel itself has it. */
#define PATH_ROOM (PATH_SIZE_MAX + NAME_SIZE_MAX)
#define STRINGS_MAX (NAMES_MAX + 3 * PATH_ROOM)
/* See behind(): where the last path begins, and there is room for it in `data`. */
#define NAMES_MOST 0x1fff
#define EXEC_NAMES_MOST 0x7fff
struct exec_scratch {
    struct record record;
    struct context context;
    char data[STRINGS_MAX + ENV_SIZE_MAX + ARGV_SIZE_MAX];
    struct walk walk;
};

/* Sizes that stand here are the least; the loader sets those that matter. */
BPF_F_TABLE("array", u32, struct config, config, 1, 1 << 7 /* BPF_F_RDONLY_PROG */);
BPF_ARRAY(switches, struct switches, 1);
BPF_PERCPU_ARRAY(counters, struct counters, KINDS);
BPF_PERCPU_ARRAY(scratch, struct scratch, KINDS);
/* One a CPU: a per-CPU map's value may not exceed 32 KiB. */
BPF_ARRAY(exec_scratch, struct exec_scratch, 1);
BPF_HASH(filters, struct filter_key, u8, 1);
BPF_HASH(tree, u32, struct tree_value, 1);
BPF_HASH(forks, u32, struct fork_value, 1);
/* For each cgroup that was seen, which parts of the filter (PART_) its container hits. */
BPF_TABLE("lru_hash", u64, u8, containers, 1);
/* When each process last executed, and which have been told to have ended. */
BPF_TABLE("lru_hash", u32, u64, exec_times, 1);
BPF_TABLE("lru_hash", struct exit_key, u8, ended, 1);
BPF_RINGBUF_OUTPUT(events, 1);
BPF_PERF_OUTPUT(perf_events);

/* The compiler knows bounds that the verifier does not, and drops the checks that
 * the verifier wants to see. This makes it forget what it knows of a value. */
INLINE u64 opaque(u64 value)
{
    asm volatile("" : "+r"(value));
    return value;
}

/* The value of the map `config`: the loader puts its address in the mark's place. */
INLINE const struct config *get_config(void)
{
    const struct config *cfg;
    asm("%0 = " CONFIG_MARK " ll" : "=r"(cfg));
    return cfg;
}

/* What can change while programs run. */
INLINE struct switches get_switches(void)
{
    u32 zero = 0;
    struct switches none = {}, *found = switches.lookup(&zero);
    return found ? *found : none;
}

/* Behind the first `at` bytes, which are at most `most`, one less than a power of two. That was
 * checked; but LLVM may put a number on the stack before its check and take it from there behind
 * it, and verifiers up to Linux 6.1 don't see that it is the same. */
INLINE char *behind(char *data, u64 at, u64 most)
{
    char *pointer = data + (opaque(at) & most);
    asm volatile("" : "+r"(pointer));
    return pointer;
}

/* ---- Kernel memory -------------------------------------------------------- */

/* How a program reads it. */
struct how {
    const struct config *cfg;
    bool nested; /* see tracer_level */
    bool typed;  /* see TYPED */
};

#define HOW(nested, typed) {get_config(), nested, typed}

/* Where the verifier knows what a pointer points at (PTR_TO_BTF_ID: an argument of a tracepoint, and
 * what is read through one), a program reads by itself; else it has to call a helper, which takes ten
 * times as long. Either way a bad pointer does no harm: 0 is read (see TRACEPOINTS in offsets.py for kernels
 * that are not asked to). Whether this kernel tells the types is in the configuration; volatile, so
 * that the verifier has the constant before its eyes. */
#define TYPED(h) ((h)->typed && ((const volatile struct config *)(h)->cfg)->typed)

/* In one piece: LLVM must not add before it is known that there is such a member. */
#define DIRECT(type, base, offset) ({ \
    u64 value_; \
    asm volatile("%0 = %1\n%0 += %2\n%0 = *(" #type " *)(%0 + 0)" \
                 : "=&r"(value_) : "r"(base), "r"((u64)(offset))); \
    value_; \
})

/* A member of a structure; 0 where this kernel has none or it can't be read. What that depends on are
 * constants for the verifier: no branch is left, each would double what it follows through a loop. */
#define READER(name, type) \
    INLINE u64 name(const struct how *h, const void *base, u32 offset) \
    { \
        type value; \
        if (offset == ABSENT) \
            return 0; \
        if (TYPED(h)) \
            return DIRECT(type, base, offset); \
        bpf_probe_read_kernel(&value, sizeof(value), (const char *)base + offset); \
        return value; \
    }

READER(read_u8, u8)
READER(read_u16, u16)
READER(read_u32, u32)
READER(read_u64, u64)

/* By the member's name in wire.py. */
#define U16(base, member) read_u16(h, base, h->cfg->offset_##member)
#define U32(base, member) read_u32(h, base, h->cfg->offset_##member)
#define U64(base, member) read_u64(h, base, h->cfg->offset_##member)
#define POINTER(base, member) ((void *)U64(base, member))

/* The same by the helper in any case: what it reads are mere numbers for the verifier, of no type, to
 * which others may be added that it doesn't know. The kernel has the member, that was seen to. */
INLINE u32 fetch_u32(const void *base, u32 offset)
{
    u32 value;
    bpf_probe_read_kernel(&value, sizeof(value), (const char *)base + offset);
    return value;
}

INLINE void *fetch_pointer(const void *base, u32 offset)
{
    void *value;
    bpf_probe_read_kernel(&value, sizeof(value), (const char *)base + offset);
    return value;
}

#define HAS(member) (h->cfg->offset_##member != ABSENT)
#define FETCH_U32(base, member) fetch_u32(base, h->cfg->offset_##member)
#define FETCH_POINTER(base, member) fetch_pointer(base, h->cfg->offset_##member)

/* Several in one go. False where this kernel has no such member or the read failed, and then what
 * was read is not to be used. */
INLINE bool read_members(void *to, u32 size, const void *base, u32 offset)
{
    return offset != ABSENT && bpf_probe_read_kernel(to, size, (const char *)base + offset) == 0;
}

/* In walks, where no type is known, members that lie near each other are read in one go: it takes
 * hardly longer than to read one of them. Which these are, and where, is in the configuration. */
#define READ_BLOCK(block, name, base) \
    bpf_probe_read_kernel(block, h->cfg->size_##name, (const char *)(base) + h->cfg->first_##name)

/* A member of such a block: it has it, that was seen to. */
#define STEP(block, member) (*(void *const volatile *)((block) + h->cfg->at_##member))

/* Whether there is such a block on this kernel. Opaque: LLVM would keep the size for the first
 * round of a loop and jump into its middle, which verifiers up to Linux 6.1 refuse ("back-edge"). */
#define HAS_BLOCK(name) (((const struct config *)opaque((u64)h->cfg))->size_##name != 0)

/* A task's name, padded with NULs as filters compare it. Before Linux 5.17 what is left of an
 * older, longer name stands behind it. */
INLINE bool read_comm(const struct how *h, char *to, const void *task)
{
    if (!task || !HAS(task_comm))
        return false;
    __builtin_memset(to, 0, COMM_SIZE);
    return bpf_probe_read_kernel_str(to, COMM_SIZE, (const char *)task + h->cfg->offset_task_comm) > 0;
}

/* 1 or 0, without a branch. */
INLINE u64 differs(u64 a, u64 b)
{
    u64 bits = opaque(a ^ b);
    u64 negative = opaque(-bits);
    return opaque((bits | negative) >> 63);
}

/* ---- Process ids ---------------------------------------------------------------
 *
 * A process has an id in its own pid namespace and in each one around it. With
 * `nested` the tracer is in a pid namespace of its own, some levels down: it sees the
 * ids that processes have there. To find that level costs the verifier much of its
 * time, so such programs stand beside those without. */

/* So in every kernel since 4.15. */
struct upid {
    int nr;
    void *ns; /* struct pid_namespace */
};

INLINE const void *upid_at(const struct how *h, const void *pid, u32 level)
{
    return (const char *)pid + h->cfg->offset_pid_numbers + sizeof(struct upid) * level;
}

#define HAS_UPIDS (HAS(task_thread_pid) && HAS(pid_level) && HAS(pid_numbers) && HAS(upid_ns) && HAS(pid_namespace_inum))

/* At what level a process is. */
INLINE u32 level_of(const struct how *h, const void *leader)
{
    return U32(POINTER(leader, task_thread_pid), pid_level);
}

/* The level of the tracer's pid namespace, if this process is in it or below; else ABSENT.
 * It goes through `level`, which lies in the record, for the reason told at END. */
INLINE u32 tracer_level(const struct how *h, volatile u32 *level, void *leader)
{
    if (!h->nested)
        return 0;
    if (!HAS_UPIDS)
        return ABSENT;

    void *pid = FETCH_POINTER(leader, task_thread_pid);
    u32 depth = level_of(h, leader);

    u64 found = 0, any = 0;

    /* Without branches, so that the verifier does not go through all that follows once
     * for each level. */
    for (u32 i = 0; i < PID_NS_LEVELS; i++) {
        /* opaque: else LLVM makes one `i != end` of both ends, where the verifier of 5.10 sees none. */
        if (opaque(i) > depth)
            break;
        void *ns = FETCH_POINTER(upid_at(h, pid, i), upid_ns);
        u64 mask = differs(FETCH_U32(ns, pid_namespace_inum), h->cfg->pid_ns) - 1;
        found |= i & mask;
        any |= mask;
    }
    /* No level has so many bits. */
    *level = found | ~any;
    return *level;
}

/* What a struct pid, the member of `holder` at `offset`, is called in the tracer's pid namespace; 0
 * where it has no id there. */
INLINE u32 visible_number(const struct how *h, const void *holder, u32 offset, u32 level)
{
    if (!h->nested)
        return U32((const void *)read_u64(h, holder, offset), pid_numbers);

    if (!HAS_UPIDS || offset == ABSENT)
        return 0;
    void *pid = fetch_pointer(holder, offset);
    if (level == ABSENT || !pid || FETCH_U32(pid, pid_level) < level)
        return 0;
    const void *upid = upid_at(h, pid, level);
    return FETCH_U32(FETCH_POINTER(upid, upid_ns), pid_namespace_inum) == h->cfg->pid_ns ? fetch_u32(upid, 0) : 0;
}

/* The same for the process that `leader` leads. */
INLINE u32 visible_pid(const struct how *h, void *leader, u32 level)
{
    if (!h->nested)
        return U32(leader, task_tgid);
    return visible_number(h, leader, h->cfg->offset_task_thread_pid, level);
}

/* Times are those of the tracer's time namespace, as its own clock and /proc tell them. */

INLINE u64 now(const struct how *h)
{
    return bpf_ktime_get_boot_ns() + h->cfg->boot_offset_ns;
}

/* No event can do without this member. */
INLINE u64 start_of(const struct how *h, const void *leader)
{
    return U64(leader, task_start_boottime) + h->cfg->boot_offset_ns;
}

INLINE u64 start_ticks(const struct how *h, u64 start_boottime_ns)
{
    return h->cfg->tick_ns ? start_boottime_ns / h->cfg->tick_ns : 0;
}

/* The task's cgroup in the hierarchy that the loader chose. */
INLINE void *cgroup_of(const struct how *h, const void *task)
{
    void *set = POINTER(task, task_cgroups);

    if (h->cfg->cgroup_index == ABSENT)
        return POINTER(set, css_set_dfl_cgrp);
    if (!HAS(css_set_subsys))
        return NULL;
    u64 state = read_u64(h, set, h->cfg->offset_css_set_subsys + 8 * h->cfg->cgroup_index);
    return POINTER((void *)state, css_cgroup);
}

/* ---- Who: the head of a record ---------------------------------------------- */

/* What several parts of a program need of a process, looked up once: for each pointer that is read through
 * an argument, verifiers since Linux 6.3 search all of the kernel's types for a list of members to be
 * trusted, which takes half a millisecond. */
struct process {
    void *leader;
    void *proxy;
    void *cgroup;
};

INLINE struct process process_of(const struct how *h, void *leader)
{
    struct process p = {leader, POINTER(leader, task_nsproxy), cgroup_of(h, leader)};
    return p;
}

INLINE void read_parent(const struct how *h, struct record *r, void *task, u32 level)
{
    /* What is told of a process is told of its leader. */
    void *leader = POINTER(POINTER(task, task_real_parent), task_group_leader);

    r->ppid = visible_pid(h, leader, level);
    if (r->ppid)
        r->valid |= VALID_PPID;
    if (leader) {
        r->parent_start_boottime_ns = start_of(h, leader);
        r->valid |= VALID_PARENT_START;
    }
    if (read_comm(h, r->parent_comm, leader))
        r->valid |= VALID_PARENT_COMM;
}

INLINE void read_identity(const struct how *h, struct record *r, const struct process *p, u32 level)
{
    void *leader = p->leader;
    u64 ids = bpf_get_current_uid_gid();

    r->cpu = bpf_get_smp_processor_id();
    r->host_pid = U32(leader, task_tgid);
    r->pid = h->nested ? visible_pid(h, leader, level) : r->host_pid;
    r->uid = ids;
    r->gid = ids >> 32;
    bpf_get_current_comm(&r->comm, COMM_SIZE);
    r->start_boottime_ns = start_of(h, leader);
    r->valid |= VALID_START;
    r->cgroup_id = U64(POINTER(p->cgroup, cgroup_kn), kernfs_node_id);
    if (r->cgroup_id)
        r->valid |= VALID_CGROUP;
    r->mnt_ns = U32(POINTER(p->proxy, nsproxy_mnt_ns), mnt_namespace_inum);
    if (r->mnt_ns)
        r->valid |= VALID_MNT_NS;
    read_parent(h, r, leader, level);
}

/* ---- Whether: the filter ---------------------------------------------------- */

/* Which parts of the filter (PART_) hold this value for this field. */
INLINE u32 parts_of_key(struct filter_key *key)
{
    u8 *parts = filters.lookup(key);
    return parts ? *parts : 0;
}

INLINE u32 parts_of(u32 field, u64 value)
{
    struct filter_key key = {};

    key.field = field;
    __builtin_memcpy(key.value, &value, sizeof(value));
    return parts_of_key(&key);
}

INLINE u32 parts_of_comm(const struct record *r)
{
    struct filter_key key = {};

    key.field = FILTER_COMM;
    /* The kernel pads comm with NULs. */
    __builtin_memcpy(key.value, r->comm, COMM_SIZE);
    return parts_of_key(&key);
}

INLINE u32 parts_of_tree(const struct how *h, u32 pid, u64 start_boottime_ns)
{
    struct tree_value *member = tree.lookup(&pid);

    /* Another start time: the pid is used again, and its first owner's exit was not seen. */
    if (!member || member->start_ticks != start_ticks(h, start_boottime_ns))
        return 0;
    return member->parts;
}

/* Python knows what a cgroup's path means. Once it has seen one, it says so here; until
 * then whatever happens in that cgroup passes. */
INLINE u32 parts_of_container(struct record *r)
{
    u8 *parts = containers.lookup(&r->cgroup_id);

    if (parts)
        return *parts;
    r->flags |= FLAG_UNDECIDED;
    return PART_INCLUDE | PART_EXCLUDE;
}

struct hits {
    u32 include; /* FILTER_ bits */
    u32 exclude;
};

/* Without branches: there would be two to the power of the fields' number of ways. */
INLINE void note(struct hits *hits, u32 field, u32 parts)
{
    hits->include |= opaque(parts / PART_INCLUDE & 1) * field;
    hits->exclude |= opaque(parts / PART_EXCLUDE & 1) * field;
}

/* Whether the record passes. A filter holds if each field that it names does; an
 * exclusion that Python has to finish is noted in the record. */
INLINE bool passes(const struct how *h, struct record *r)
{
    struct hits hits = {};
    u32 asked = h->cfg->include | h->cfg->exclude;

    if (asked & FILTER_UID)
        note(&hits, FILTER_UID, parts_of(FILTER_UID, r->uid));
    if (asked & FILTER_PID)
        note(&hits, FILTER_PID, parts_of(FILTER_PID, r->pid));
    if (asked & FILTER_PPID && r->valid & VALID_PPID)
        note(&hits, FILTER_PPID, parts_of(FILTER_PPID, r->ppid));
    if (asked & FILTER_COMM)
        note(&hits, FILTER_COMM, parts_of_comm(r));
    if (asked & FILTER_CGROUP && r->valid & VALID_CGROUP)
        note(&hits, FILTER_CGROUP, parts_of(FILTER_CGROUP, r->cgroup_id));
    if (asked & FILTER_MNT_NS && r->valid & VALID_MNT_NS)
        note(&hits, FILTER_MNT_NS, parts_of(FILTER_MNT_NS, r->mnt_ns));
    if (asked & FILTER_TREE)
        note(&hits, FILTER_TREE, parts_of_tree(h, r->pid, r->start_boottime_ns));
    if (asked & FILTER_CONTAINER && r->valid & VALID_CGROUP)
        note(&hits, FILTER_CONTAINER, parts_of_container(r));

    if ((hits.include & h->cfg->include) != h->cfg->include)
        return false;
    if ((hits.exclude & h->cfg->exclude) == h->cfg->exclude) {
        if (h->cfg->exclude_final && !(r->flags & FLAG_UNDECIDED))
            return false;
        r->flags |= FLAG_EXCLUDED;
    }
    return true;
}

/* Whether the record is wanted: by the filter, or, marked, for the table of processes. */
INLINE bool wanted(const struct how *h, struct record *r)
{
    if (!r->pid)
        return false;
    if (passes(h, r))
        return true;
    r->flags |= FLAG_UNWANTED;
    return get_switches().track;
}

/* ---- What: the strings behind the head ---------------------------------------- */

/* Each of these appends to the data. Where that ends is kept in the record, in a map: the
 * verifier, which follows every value that a register can have, knows nothing of what is
 * in a map, and has each part to look at once. */
#define END(r) (*(volatile u32 *)&(r)->size)

INLINE void append_filename(struct exec_scratch *s, const char *filename)
{
    u64 size = opaque(bpf_probe_read_kernel_str(s->data, PATH_SIZE_MAX, filename));

    if (size > PATH_SIZE_MAX) /* also a negative error */
        return;
    s->record.filename_size = size;
    END(&s->record) = size;
}

INLINE void append_interp(struct exec_scratch *s, const char *interp)
{
    u64 at = END(&s->record);

    if (at > PATH_SIZE_MAX)
        return;
    u64 size = opaque(bpf_probe_read_kernel_str(s->data + at, PATH_SIZE_MAX, interp));
    if (size > PATH_SIZE_MAX)
        return;
    s->record.interp_size = size;
    s->record.valid |= VALID_INTERP;
    END(&s->record) = at + size;
}

/* What the kernel has noted of the exec. */
INLINE void append_filenames(const struct how *h, struct exec_scratch *s, void *bprm)
{
    const char *filename = POINTER(bprm, bprm_filename);
    const char *interp = POINTER(bprm, bprm_interp);

    s->record.argc = U32(bprm, bprm_argc);
    append_filename(s, filename);
    if (interp == filename)
        s->record.valid |= VALID_INTERP;
    else
        append_interp(s, interp);
}

/* Paths are walked from the leaf to the root and stand so in the record, each name with
 * its NUL: Python turns them round. */

/* Append one more name to a path, of which there are `used` bytes. False where there is no room.
 * Where it can't be read or is perhaps cut, `used` becomes more than PATH_ROOM: then there is none
 * for the next, and who looks at the whole path has to look at that too. */
INLINE bool append_name(char *path, volatile u32 *used, const char *name)
{
    u64 there = *used;

    if (there > PATH_SIZE_MAX)
        return false;
    u64 size = opaque(bpf_probe_read_kernel_str(path + there, NAME_SIZE_MAX, name));
    *used = there + size + ((size / NAME_SIZE_MAX & 0xffff) << 16);
    return true;
}

/* From a directory entry to the root of the task's mount namespace, over mount points.
 * False where the path is too long or deep, or ends elsewhere (in another namespace, at
 * a mount that was taken away), and then it is not known. The walk goes through memory
 * for the same reason as END. */
INLINE bool append_path(const struct how *h, struct exec_scratch *s, char *path, volatile u32 *used,
                        const struct process *p, void *mnt, void *dentry)
{
    u64 ns = U64(p->proxy, nsproxy_mnt_ns);
    volatile struct walk *w = &s->walk;
    char *block = s->walk.block;

    w->dentry = (u64)dentry;
    w->mount = (u64)mnt;
    w->mount -= h->cfg->offset_mount_mnt;
    w->root = U64(mnt, vfsmount_mnt_root);
    if (!mnt || !w->root || !HAS(mount_mnt) || !HAS(mount_mnt_ns) || !HAS_BLOCK(dentry) || !HAS_BLOCK(mount))
        return false;
    for (u32 i = 0; i < PATH_DEPTH_MAX; i++) {
        void *here = (void *)w->dentry;
        READ_BLOCK(block, dentry, here);
        void *parent = STEP(block, dentry_d_parent);
        if (differs((u64)here, (u64)parent) & differs((u64)here, w->root)) {
            w->dentry = (u64)parent;
            if (!append_name(path, used, STEP(block, dentry_name)))
                return false;
            continue;
        }
        /* The root of a mount: on from where it is mounted. */
        char *mount = (char *)w->mount;
        READ_BLOCK(block, mount, mount);
        char *below = STEP(block, mount_mnt_parent);
        if (below == mount)
            return (u64)FETCH_POINTER(mount, mount_mnt_ns) == ns;
        w->dentry = (u64)STEP(block, mount_mnt_mountpoint);
        w->root = (u64)fetch_pointer(below, h->cfg->offset_mount_mnt + h->cfg->offset_vfsmount_mnt_root);
        w->mount = (u64)below;
    }
    return false;
}

INLINE void append_exe(const struct how *h, struct exec_scratch *s, const struct process *p, void *mnt,
                       void *dentry)
{
    struct record *r = &s->record;
    u64 at = END(r);
    bool known;

    if (at > NAMES_MAX)
        return;
    char *path = behind(s->data, at, EXEC_NAMES_MOST);
    if (U64(dentry, dentry_hashed) == 0)
        s->context.bits |= CONTEXT_UNHASHED;
    /* A file that is in no directory has but the name that it was made with (memfd_create). */
    if (dentry && dentry == POINTER(dentry, dentry_d_parent) && dentry != POINTER(mnt, vfsmount_mnt_root)) {
        s->context.bits |= CONTEXT_DETACHED;
        known = append_name(path, &r->exe_size, POINTER(dentry, dentry_name));
    } else {
        known = append_path(h, s, path, &r->exe_size, p, mnt, dentry);
    }
    if (known && r->exe_size <= PATH_ROOM)
        r->valid |= VALID_EXE_PATH;
    else
        r->exe_size = 0;
    END(r) = at + r->exe_size;
}

INLINE void append_cwd(const struct how *h, struct exec_scratch *s, const struct process *p)
{
    void *fs = POINTER(p->leader, task_fs);
    struct record *r = &s->record;
    u64 at = END(r);

    if (at > NAMES_MAX + PATH_ROOM)
        return;
    char *path = behind(s->data, at, EXEC_NAMES_MOST);
    void *mnt = POINTER(fs, fs_pwd_mnt);
    void *dentry = POINTER(fs, fs_pwd_dentry);
    if (append_path(h, s, path, &r->cwd_size, p, mnt, dentry) && r->cwd_size <= PATH_ROOM)
        r->valid |= VALID_CWD;
    else
        r->cwd_size = 0;
    END(r) = at + r->cwd_size;
}

/* The path of the task's cgroup, up to the root of its hierarchy. Of a
 * very deep one the upper part: whoever may make cgroups in a container must not be able
 * to hide it by making many. */
INLINE void append_cgroup(const struct how *h, struct record *r, const struct process *p, char *path)
{
    void *node = POINTER(p->cgroup, cgroup_kn);
    volatile u32 *depth = &r->cgroup_size;

    if (!node || !HAS(kernfs_node_parent) || !HAS(kernfs_node_name))
        return;
    *depth = U32(p->cgroup, cgroup_level);
    if (*depth >= CGROUP_DEPTH_MAX)
        r->flags |= FLAG_CGROUP_CUT;
    for (u32 i = 0; i < CGROUP_SKIP_MAX && *depth >= CGROUP_DEPTH_MAX; i++) {
        node = POINTER(node, kernfs_node_parent);
        if (!node)
            break;
        *depth -= 1;
    }
    r->cgroup_size = 0;
    for (u32 i = 0; i < CGROUP_DEPTH_MAX && node; i++) {
        void *parent = POINTER(node, kernfs_node_parent);
        if (!parent) {
            if (r->cgroup_size <= PATH_ROOM)
                r->valid |= VALID_CGROUP_PATH;
            break;
        }
        if (!append_name(path, &r->cgroup_size, POINTER(node, kernfs_node_name)))
            break;
        node = parent;
    }
    if (!(r->valid & VALID_CGROUP_PATH))
        r->cgroup_size = 0;
    END(r) += r->cgroup_size;
}

/* Whether a process was put into its container, or descends from one that was. Of a pid
 * namespace's own processes the first is number 1, and the others descend from it;
 * what comes in from outside has another number and a parent that is not in it. So: up
 * through the parents, as far as the initial pid namespace, and look at each step out.
 * (Who makes a namespace with unshare(2) stays outside: its second child looks put in.) */
INLINE void read_injected(const struct how *h, struct record *r, void *leader, u32 level)
{
    u64 left = 0; /* whether a pid namespace was left by its own first process */
    u64 entered = 0;

    if (!level || !HAS_UPIDS || !HAS(task_real_parent) || !HAS(task_group_leader))
        return;
    void *task = leader;
    void *pid = FETCH_POINTER(task, task_thread_pid);

    for (u32 i = 0; i < ANCESTORS_MAX; i++) {
        if (!level) {
            if (left | entered)
                r->flags |= entered ? FLAG_INJECTED : FLAG_OWN;
            return;
        }
        void *ns = FETCH_POINTER(upid_at(h, pid, level), upid_ns);
        /* The leader: a thread has a number of its own. */
        void *parent = FETCH_POINTER(FETCH_POINTER(task, task_real_parent), task_group_leader);
        void *parent_pid = FETCH_POINTER(parent, task_thread_pid);
        u32 parent_level = FETCH_U32(parent_pid, pid_level);
        void *parent_ns = FETCH_POINTER(upid_at(h, parent_pid, parent_level), upid_ns);
        u64 out = differs((u64)ns, (u64)parent_ns);
        u64 other = differs(fetch_u32(upid_at(h, pid, level), 0), 1);
        left |= out & ~other;
        entered |= out & other;
        task = parent;
        pid = parent_pid;
        level = parent_level;
    }
}

/* Where the arguments of the program are, and how many bytes of them to take. The
 * kernel has just written these pages of the new program's stack, and nobody has
 * run there since: what is read is what the program gets. */
INLINE u64 argv_of(const struct how *h, struct record *r, void *mm, const char **start)
{
    *start = POINTER(mm, mm_arg_start);
    u64 size = U64(mm, mm_arg_end) - (u64)*start;
    if (size <= h->cfg->argv_size)
        return size;
    r->flags |= FLAG_ARGV_TRUNCATED;
    return h->cfg->argv_size;
}

INLINE void argv_unreadable(struct record *r)
{
    r->flags = (r->flags & ~FLAG_ARGV_TRUNCATED) | FLAG_ARGV_UNREADABLE;
    r->argv_size = 0;
}

INLINE void append_argv(struct exec_scratch *s, const char *start, u64 size)
{
    u64 at = END(&s->record);

    size = opaque(size);
    if (at > STRINGS_MAX + ENV_SIZE_MAX || size > ARGV_SIZE_MAX)
        return;
    if (bpf_probe_read_user(s->data + at, size, start)) {
        argv_unreadable(&s->record);
        return;
    }
    s->record.argv_size = size;
    END(&s->record) = at + size;
}

/* The environment, written by the kernel as the arguments are. */
INLINE void append_env(const struct how *h, struct exec_scratch *s, void *mm)
{
    const char *start = POINTER(mm, mm_env_start);
    const char *end = POINTER(mm, mm_env_end);
    struct record *r = &s->record;
    u64 size = end - start, at = END(r);

    if (size > h->cfg->env_size) {
        size = h->cfg->env_size;
        r->flags |= FLAG_ENV_TRUNCATED;
    }
    size = opaque(size);
    if (at > STRINGS_MAX || size > ENV_SIZE_MAX)
        return;
    if (!start || bpf_probe_read_user(s->data + at, size, start))
        return;
    r->valid |= VALID_ENV;
    r->env_size = size;
    END(r) = at + size;
}

/* ---- What else: captured where it was asked for ----------------------------------- */

/* The kernel notes in the linux_binprm what a program gains: its personality loses
 * some flags (per_clear) where a set-ID bit or capabilities of the file took effect
 * (bprm_fill_uid, cap_bprm_creds_from_file), and secureexec becomes AT_SECURE. */
INLINE u32 gains(const struct how *h, const void *bprm)
{
    u32 bits = 0;
    u32 secure = h->cfg->bit_bprm_secureexec;

    if (U32(bprm, bprm_per_clear))
        bits |= CONTEXT_GAINED;
    if (secure != ABSENT) {
        bits |= CONTEXT_SECURE_KNOWN;
        if (read_u8(h, bprm, secure / 8) >> (secure & 7) & 1)
            bits |= CONTEXT_SECURE;
    }
    return bits;
}

INLINE void read_creds(const struct how *h, struct exec_scratch *s, void *task, void *cred)
{
    struct context *c = &s->context;

    if (read_members(&c->uid, 32, cred, h->cfg->offset_cred_uid) &&
        read_members(&c->cap_inheritable, 40, cred, h->cfg->offset_cred_caps))
        s->record.valid |= VALID_CREDS;
    c->loginuid = HAS(task_loginuid) ? U32(task, task_loginuid) : ABSENT;
    c->sessionid = HAS(task_sessionid) ? U32(task, task_sessionid) : ABSENT;
    if (cred && U32(POINTER(cred, cred_user_ns), user_namespace_level))
        c->bits |= CONTEXT_USER_NS;
}

INLINE void read_session(const struct how *h, struct exec_scratch *s, void *task, u32 level)
{
    void *signal = POINTER(task, task_signal);
    void *tty = POINTER(signal, signal_tty);
    void *driver = POINTER(tty, tty_driver);
    struct context *c = &s->context;

    if (!signal || !HAS(signal_sid))
        return;
    c->sid = visible_number(h, signal, h->cfg->offset_signal_sid, level);
    c->pgid = visible_number(h, signal, h->cfg->offset_signal_pgid, level);
    s->record.valid |= VALID_SESSION;
    if (driver) {
        c->tty_major = U32(driver, tty_driver_major);
        c->tty_minor = U32(driver, tty_driver_minor_start) + U32(tty, tty_index);
    }
}

INLINE void read_namespaces(const struct how *h, struct exec_scratch *s, const struct process *p, u32 level,
                            void *cred)
{
    void *proxy = p->proxy;
    struct context *c = &s->context;

    if (HAS_UPIDS) {
        const void *upid = upid_at(h, FETCH_POINTER(p->leader, task_thread_pid), level);
        c->vpid = fetch_u32(upid, 0);
        c->pid_ns = FETCH_U32(FETCH_POINTER(upid, upid_ns), pid_namespace_inum);
    }
    c->net_ns = U32(POINTER(proxy, nsproxy_net_ns), net_inum);
    c->uts_ns = U32(POINTER(proxy, nsproxy_uts_ns), uts_namespace_inum);
    c->ipc_ns = U32(POINTER(proxy, nsproxy_ipc_ns), ipc_namespace_inum);
    c->cgroup_ns = U32(POINTER(proxy, nsproxy_cgroup_ns), cgroup_namespace_inum);
    c->time_ns = U32(POINTER(proxy, nsproxy_time_ns), time_namespace_inum);
    if (cred)
        c->user_ns = U32(POINTER(cred, cred_user_ns), user_namespace_inum);
    s->record.valid |= VALID_NAMESPACES;
}

/* Bit 31: somebody has looked at the time (I_CTIME_QUERIED, since Linux 6.13). */
#define NANOSECONDS 0x7fffffff

#define S_ISUID 04000
#define S_ISGID 02000
#define MNT_NOSUID 1

INLINE void read_file(const struct how *h, struct exec_scratch *s, void *mnt, void *inode)
{
    struct context *c = &s->context;

    if (!inode)
        return;
    c->mode = U16(inode, inode_mode);
    /* With the next three it tells which of the set-ID bits took effect. */
    if (c->mode & (S_ISUID | S_ISGID)) {
        c->owner = U32(inode, inode_uid);
        c->group = U32(inode, inode_gid);
        if (U32(mnt, vfsmount_mnt_flags) & MNT_NOSUID)
            c->bits |= CONTEXT_NOSUID;
    }
    if (!(h->cfg->capture & CAPTURE_EXE) || !HAS(inode_ino))
        return;
    s->record.valid |= VALID_EXE;
    c->inode = U64(inode, inode_ino);
    c->file_size = U64(inode, inode_size);
    if (HAS(inode_ctime_s))
        s->record.valid |= VALID_EXE_CTIME;
    c->ctime_s = U64(inode, inode_ctime_s);
    c->ctime_ns = U32(inode, inode_ctime_ns) & NANOSECONDS;
    c->device = U32(POINTER(inode, inode_sb), super_block_dev);
}

INLINE void capture_file(const struct how *h, struct exec_scratch *s, const struct process *p, void *mm)
{
    void *file = POINTER(mm, mm_exe_file);
    void *mnt = POINTER(file, file_mnt);

    if (!file)
        return;
    read_file(h, s, mnt, POINTER(file, file_inode));
    if (h->cfg->capture & CAPTURE_EXE)
        append_exe(h, s, p, mnt, POINTER(file, file_dentry));
}

/* All that was asked for, behind the names. */
INLINE void capture(const struct how *h, struct exec_scratch *s, const struct process *p, void *mm, u32 level)
{
    u32 asked = h->cfg->capture, own_level = 0;
    void *cred = NULL;

    /* Never NULL; but verifiers of kernels that Clang has compiled want to see that. */
    if (asked & (CAPTURE_CREDS | CAPTURE_NAMESPACES))
        cred = POINTER(p->leader, task_cred);
    if (asked & (CAPTURE_NAMESPACES | CAPTURE_CONTAINER))
        own_level = level_of(h, p->leader);
    if (asked & (CAPTURE_CREDS | CAPTURE_EXE))
        capture_file(h, s, p, mm);
    if (asked & CAPTURE_CREDS)
        read_creds(h, s, p->leader, cred);
    if (asked & CAPTURE_SESSION)
        read_session(h, s, p->leader, level);
    if (asked & CAPTURE_NAMESPACES)
        read_namespaces(h, s, p, own_level, cred);
    if (asked & CAPTURE_CWD)
        append_cwd(h, s, p);
    if (asked & CAPTURE_CONTAINER) {
        u64 at = END(&s->record);
        if (at > NAMES_MAX + 2 * PATH_ROOM)
            return;
        append_cgroup(h, &s->record, p, behind(s->data, at, EXEC_NAMES_MOST));
        read_injected(h, &s->record, p->leader, own_level);
    }
    if (h->cfg->env_size && !(s->record.flags & FLAG_UNWANTED))
        append_env(h, s, mm);
}

/* What the other kinds of event have of it. */
INLINE void capture_container(const struct how *h, struct scratch *s, const struct process *p)
{
    u64 at = END(&s->record);

    if (!(h->cfg->capture & CAPTURE_CONTAINER) || at > PATH_SIZE_MAX)
        return;
    append_cgroup(h, &s->record, p, behind(s->data, at, NAMES_MOST));
    read_injected(h, &s->record, p->leader, level_of(h, p->leader));
}

/* ---- Out: into the buffer ------------------------------------------------------- */

/* BCC 0.18 and 0.26 have no method for bpf_ringbuf_query, but turn a method's call
 * into a call of the helper with the map in its first argument, and then compile
 * that text: so an output of size 0 can be made to mean the query. */
static long (*ringbuf_query)(void *ring, u64 flags) = (void *)134;
#define bpf_ringbuf_output(ring, data, size, flags) \
    ((size) == 0 ? ringbuf_query(ring, flags) : bpf_ringbuf_output(ring, data, size, flags))

/* Whether the ring holds less than `room` bytes: what is frequent and of lesser
 * value stops before it is full, and leaves the rest to what matters. */
INLINE bool has_room(struct record *r, u32 room)
{
    return (u64)events.ringbuf_output(r, 0, 0 /* BPF_RB_AVAIL_DATA */) < room;
}

/* Whether an exec has to be left out: what only the table of processes wants must not cost
 * one that was asked for. */
INLINE bool crowded(const struct how *h, struct record *r)
{
    return r->flags & FLAG_UNWANTED && !h->cfg->perf && !has_room(r, h->cfg->room_process);
}

/* Hand over a record: a head of `head` bytes and the data; `max` is the most that it can be. */
INLINE void emit(void *ctx, const struct how *h, struct counters *count, struct record *r, u32 head, u32 max)
{
    u64 size = opaque((u64)END(r) + head);
    long lost;

    /* Never: for the verifier. Of two comparisons LLVM makes one that the verifier of 6.1
     * doesn't follow; and a record that is too small is a ValueError to its reader. */
    if (size > max) {
        count->lost++;
        return;
    }
    r->size = size;
    r->lost = count->lost;
    r->boottime_ns = now(h);
    if (h->cfg->perf)
        lost = perf_events.perf_submit(ctx, r, size);
    else
        /* Wakes the reader only if it had read all there was (BPF_RB_NO_WAKEUP is not
         * set); while it waits out its latency, nobody is woken and nobody pays. */
        lost = events.ringbuf_output(r, size, 0);
    if (lost)
        count->lost++;
}

/* More arguments than a scratch buffer holds: straight into the ring, where room
 * can only be had in sizes that the verifier knows. */
INLINE void emit_in_room(const struct how *h, struct counters *count, struct exec_scratch *s,
                         const char *start, u64 size, u64 room_size)
{
    struct record *r = &s->record;
    u64 at = opaque((u64)END(r) + EXEC_HEAD);
    char *room = events.ringbuf_reserve(room_size);

    if (!room) {
        count->lost++;
        return;
    }
    size = opaque(size);
    at = opaque(at);
    if (at > EXEC_HEAD + STRINGS_MAX + ENV_SIZE_MAX || size > room_size - LARGE_HEAD_MAX) {
        events.ringbuf_discard(room, 0);
        count->lost++;
        return;
    }
    /* Here, and below once more: the verifier of 5.10 forgets what it knew of a number that
     * the compiler puts aside on the stack, but not of a pointer. */
    char *rest = room + at;
    r->lost = count->lost;
    r->argv_size = size;
    r->size = at + size;
    if (bpf_probe_read_user(rest, size, start)) {
        argv_unreadable(r);
        r->size = at;
    }
    r->boottime_ns = now(h);
    at = opaque(at);
    if (at <= EXEC_HEAD + STRINGS_MAX + ENV_SIZE_MAX)
        bpf_probe_read_kernel(room, at, s);
    events.ringbuf_submit(room, 0);
}

/* A room and its own head have to fit into a ring of the next power of two. */
#define ROOM(kib) (((kib) << 10) - 4096)
#define FITS(size, kib) ((size) <= ROOM(kib) - LARGE_HEAD_MAX)

INLINE void emit_large(const struct how *h, struct counters *count, struct exec_scratch *s,
                       const char *start, u64 size)
{
    if (FITS(size, 64))
        emit_in_room(h, count, s, start, size, ROOM(64));
    else if (FITS(size, 128))
        emit_in_room(h, count, s, start, size, ROOM(128));
    else if (FITS(size, 256))
        emit_in_room(h, count, s, start, size, ROOM(256));
    else if (FITS(size, 512))
        emit_in_room(h, count, s, start, size, ROOM(512));
    else if (FITS(size, 1024))
        emit_in_room(h, count, s, start, size, ROOM(1024));
    else
        emit_in_room(h, count, s, start, size, (2 << 20) + LARGE_HEAD_MAX);
}

/* ---- What happened ---------------------------------------------------------------- */

/* The buffers of one kind of event, looked up together. */
struct kind {
    const struct how *h;
    struct counters *count;
    struct scratch *s;
};

INLINE bool begin(struct kind *k, const struct how *h, u32 kind)
{
    k->h = h;
    k->count = counters.lookup(&kind);
    k->s = scratch.lookup(&kind);
    if (!k->count || !k->s)
        return false;
    __builtin_memset(&k->s->record, 0, sizeof(struct record));
    k->s->record.kind = kind;
    return true;
}

/* The same for execs. */
struct exec {
    const struct how *h;
    struct counters *count;
    struct exec_scratch *s;
};

INLINE bool begin_exec(struct exec *e, const struct how *h)
{
    u32 kind = KIND_EXEC, cpu = bpf_get_smp_processor_id();

    e->h = h;
    e->count = counters.lookup(&kind);
    e->s = exec_scratch.lookup(&cpu);
    if (!e->count || !e->s)
        return false;
    __builtin_memset(e->s, 0, EXEC_HEAD);
    e->s->record.kind = kind;
    return true;
}

/* For the exit record that will want it. */
INLINE void note_exec_time(const struct how *h, struct record *r)
{
    u64 time = now(h);

    if (h->cfg->exits)
        exec_times.update(&r->host_pid, &time);
}

/* The last of an exec: its arguments, behind the names, and out. */
INLINE void emit_with_argv(void *ctx, struct exec *e, void *mm)
{
    struct record *r = &e->s->record;
    const char *start;
    u64 size = argv_of(e->h, r, mm, &start);

#if !defined(LARGE) || LARGE
    if (size > ARGV_SIZE_MAX)
        emit_large(e->h, e->count, e->s, start, size);
    else
#endif
    {
        append_argv(e->s, start, size);
        emit(ctx, e->h, e->count, r, EXEC_HEAD, sizeof(*e->s));
    }
    if (r->flags & FLAG_UNWANTED)
        return;
    if (r->flags & FLAG_ARGV_UNREADABLE)
        e->count->argv_unreadable++;
    if (r->flags & FLAG_ARGV_TRUNCATED)
        e->count->argv_truncated++;
}

/* args: struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm
 *
 * `task` leads its thread group by now, whichever thread called exec, and old_pid
 * is that thread's id before (exec_binprm in fs/exec.c). */
INLINE int on_exec(struct bpf_raw_tracepoint_args *ctx, bool nested)
{
    void *task = (void *)ctx->args[0];
    u32 old_pid = ctx->args[1];
    void *bprm = (void *)ctx->args[2];
    const struct how how = HOW(nested, true), *h = &how;
    struct exec e;

    /* It never is; but the verifier would follow all that comes with one and without. */
    if (!task || !begin_exec(&e, h))
        return 0;
    struct record *r = &e.s->record;
    u32 level = tracer_level(h, &r->level, task);
    e.count->seen++;

    struct process p = process_of(h, task);
    read_identity(h, r, &p, level);
    /* The kernel has already freed the caller's own id in other namespaces. */
    r->tid = nested ? r->pid : old_pid;
    note_exec_time(h, r);
    if (!wanted(h, r)) {
        e.count->filtered++;
        return 0;
    }
    if (crowded(h, r)) {
        e.count->lost++;
        return 0;
    }

    e.s->context.bits = gains(h, bprm);
    append_filenames(h, e.s, bprm);
    void *mm = POINTER(task, task_mm);
    capture(h, e.s, &p, mm, level);
    emit_with_argv(ctx, &e, mm);
    return 0;
}

/* ---- Failed attempts --------------------------------------------------------------- */

/* Numbers of arch/x86/entry/syscalls: execve and execveat, as called by programs of
 * 64 bits, of x32, and of 32 bits. Whether a call came in by the 32-bit entry is
 * told by TS_COMPAT, which the kernel clears on the way out. */
#define TS_COMPAT 2
#define X32_BIT 0x40000000

INLINE bool is_exec(const struct how *h, const void *regs, struct call *call)
{
    u32 nr = U64(regs, regs_orig_ax);
    bool at; /* execveat: a directory comes first */

    /* What nearly every call leaves by. */
    if (nr != 59 && nr != 322 && nr != 11 && nr != 358 && nr != (X32_BIT | 520) && nr != (X32_BIT | 545))
        return false;
    void *task = (void *)bpf_get_current_task();
    call->compat = (U32(task, task_thread_status) & TS_COMPAT) != 0;
    if (call->compat) {
        at = nr == 358;
        if (nr != 11 && !at)
            return false;
        call->filename = (u32)read_u64(h, regs, at ? h->cfg->offset_regs_cx : h->cfg->offset_regs_bx);
        call->argv = (u32)read_u64(h, regs, at ? h->cfg->offset_regs_dx : h->cfg->offset_regs_cx);
        return true;
    }
    if (nr == 11 || nr == 358)
        return false;
    at = nr == 322 || nr == (X32_BIT | 545);
    call->filename = read_u64(h, regs, at ? h->cfg->offset_regs_si : h->cfg->offset_regs_di);
    call->argv = read_u64(h, regs, at ? h->cfg->offset_regs_dx : h->cfg->offset_regs_si);
    /* x32 has pointers of 4 bytes too, but not this kernel's flag. */
    call->compat = (nr & X32_BIT) != 0;
    return true;
}

INLINE bool read_pointer(u64 *pointer, u64 at, bool compat)
{
    *pointer = 0;
    return bpf_probe_read_user(pointer, 4, (void *)at) == 0 &&
           (compat || bpf_probe_read_user(pointer, 8, (void *)at) == 0);
}

/* Read a string and return its size, the NUL included; more than PATH_SIZE_MAX where
 * it can't be read. Of an empty one Linux 6.1 reads nothing and returns 0; that is made
 * 1, without a branch: each would double what the verifier follows through a loop. */
INLINE u64 append_user_string(struct scratch *s, u64 at, u64 pointer)
{
    at = opaque(at);
    if (at > PATH_SIZE_MAX + ARGV_SIZE_MAX)
        return ABSENT;
    s->data[at] = 0;
    u64 size = opaque(bpf_probe_read_user_str(s->data + at, PATH_SIZE_MAX, (void *)pointer));
    u64 below = opaque(size - 1);
    return opaque(size + (below >> 63));
}

/* The arguments, from where the caller keeps them. */
INLINE void append_pointers(const struct how *h, struct scratch *s, const struct call *call)
{
    struct record *r = &s->record;
    u64 pointer;

    for (u32 i = 0; i <= FAILED_ARGS_MAX; i++) {
        u64 at = END(r);
        if (!read_pointer(&pointer, call->argv + i * (call->compat ? 4 : 8), call->compat))
            goto unreadable;
        if (!pointer)
            return;
        if (i == FAILED_ARGS_MAX || at > PATH_SIZE_MAX + ARGV_SIZE_MAX || r->argv_size >= h->cfg->argv_size)
            break;
        u64 size = append_user_string(s, at, pointer);
        if (size > PATH_SIZE_MAX)
            goto unreadable;
        END(r) = at + size;
        r->argv_size += size;
        r->argc++;
        if (size == PATH_SIZE_MAX) /* perhaps cut */
            break;
    }
    r->flags |= FLAG_ARGV_TRUNCATED;
    return;
unreadable:
    END(r) -= r->argv_size;
    argv_unreadable(r);
}

/* Whether to look at a failure at all. Asked before anything is read: a loop of them comes
 * here a million times a second. */
INLINE bool begin_failure(struct kind *k, const struct how *h)
{
    if (!begin(k, h, KIND_FAILED))
        return false;
    if (h->cfg->perf || has_room(&k->s->record, h->cfg->room_failed))
        return true;
    k->count->seen++;
    k->count->lost++;
    return false;
}

INLINE void on_failure(void *ctx, struct kind *k, const struct call *call, u32 error, u32 tid, u32 level)
{
    const struct how *h = k->h;
    struct record *r = &k->s->record;

    k->count->seen++;
    void *task = (void *)bpf_get_current_task();
    void *leader = POINTER(task, task_group_leader);
    if (!leader) { /* never, as in on_exec */
        k->count->filtered++;
        return;
    }
    struct process p = process_of(h, leader);
    read_identity(h, r, &p, level);
    r->tid = tid ? tid : r->pid;
    r->status = error;
    if (!r->pid || !passes(h, r)) {
        k->count->filtered++;
        return;
    }
    u64 size = append_user_string(k->s, 0, call->filename);
    if (size > PATH_SIZE_MAX)
        size = 0;
    r->filename_size = size;
    END(r) = size;
    capture_container(h, k->s, &p);
    append_pointers(h, k->s, call);
    emit(ctx, h, k->count, r, sizeof(*r), sizeof(*k->s));
}

/* args: struct pt_regs *regs, long ret
 *
 * At the end of every system call of every task: whoever comes here for nothing has
 * to be gone at once. */
INLINE int on_sys_exit(struct bpf_raw_tracepoint_args *ctx, bool nested)
{
    long result = (long)ctx->args[1];
    struct call call;

    /* ERESTARTSYS (512) and up are between the kernel and itself. */
    if (result >= 0 || result <= -512)
        return 0;
    const struct how how = HOW(nested, false), *h = &how;
    if (!is_exec(h, (void *)ctx->args[0], &call))
        return 0;
    struct kind k;
    if (!begin_failure(&k, h))
        return 0;
    void *task = (void *)bpf_get_current_task();
    u32 level = tracer_level(h, &k.s->record.level, task);
    on_failure(ctx, &k, &call, -result, nested ? 0 : (u32)bpf_get_current_pid_tgid(), level);
    return 0;
}

/* ---- Processes that start and end ---------------------------------------------------- */

/* The tree of a filter's descendants_of grows: returns nothing, for the filter that
 * comes behind looks into the map. */
INLINE void follow_child(const struct how *h, struct counters *count, void *parent, void *child, u32 level)
{
    void *leader = POINTER(parent, task_group_leader);
    u32 parent_pid = visible_pid(h, leader, level);
    u32 child_pid = visible_pid(h, child, level);
    u64 parent_start = start_of(h, leader);

    struct tree_value member = {};
    member.start_ticks = start_ticks(h, start_of(h, child));
    member.parts = parts_of_tree(h, parent_pid, parent_start);

    /* While the loader brings in what runs already: log what is not (or not wholly)
     * known to belong, then look again. The loader inserts, then reads the log; so
     * a child whose parent comes into the tree just now is found by one of the two. */
    if (get_switches().arming & ~member.parts) {
        struct fork_value fork = {};
        fork.start_ticks = member.start_ticks;
        fork.parent = parent_pid;
        if (forks.update(&child_pid, &fork))
            count->tree_full++;
        member.parts = parts_of_tree(h, parent_pid, parent_start);
    }
    if (member.parts && tree.update(&child_pid, &member))
        count->tree_full++;
}

/* Of a process that starts or ends the head is all, and the container. */
INLINE void emit_process(void *ctx, struct kind *k, const struct process *p)
{
    const struct how *h = k->h;
    struct record *r = &k->s->record;

    k->count->seen++;
    if (!wanted(h, r))
        k->count->filtered++;
    else if (!h->cfg->perf && !has_room(r, h->cfg->room_process))
        k->count->lost++;
    else {
        capture_container(h, k->s, p);
        emit(ctx, h, k->count, r, sizeof(*r), sizeof(*k->s));
    }
}

/* args: struct task_struct *parent, struct task_struct *child */
INLINE int on_fork(struct bpf_raw_tracepoint_args *ctx, bool nested)
{
    void *child = (void *)ctx->args[1];
    const struct how how = HOW(nested, true), *h = &how;
    struct kind k;

    if (!child || !begin(&k, h, KIND_FORK))
        return 0;
    struct record *r = &k.s->record;
    /* A thread is not a process. */
    if (U32(child, task_pid) != U32(child, task_tgid))
        return 0;
    u32 level = tracer_level(h, &r->level, child);
    if (h->cfg->tree)
        follow_child(h, k.count, (void *)ctx->args[0], child, level);
    if (!h->cfg->forks && !get_switches().track)
        return 0;
    struct process p = process_of(h, child);
    read_identity(h, r, &p, level);
    r->tid = r->pid;
    emit_process(ctx, &k, &p);
    return 0;
}

#define SIGNAL_GROUP_EXIT 4

/* As wait(2) gives it. */
INLINE u32 exit_status(const struct how *h, void *signal, void *leader)
{
    if (U32(signal, signal_flags) & SIGNAL_GROUP_EXIT)
        return U32(signal, signal_group_exit_code);
    return U32(leader, task_exit_code);
}

INLINE void read_exec_time(struct record *r)
{
    u64 *executed = exec_times.lookup(&r->host_pid);

    /* An older one is of the process that had this pid before. */
    if (executed && *executed >= r->start_boottime_ns) {
        r->exec_boottime_ns = *executed;
        r->valid |= VALID_EXEC_TIME;
    }
    exec_times.delete(&r->host_pid);
}

/* The last thread of a process is going. */
INLINE int on_last_exit(void *ctx, struct kind *k, void *task, void *signal)
{
    const struct how *h = k->h;
    struct record *r = &k->s->record;
    void *leader = POINTER(task, task_group_leader);
    u32 level = tracer_level(h, &r->level, leader);

    if (!leader)
        return 0;
    if (h->cfg->exits || get_switches().track) {
        struct process p = process_of(h, leader);
        read_identity(h, r, &p, level);
        r->tid = h->nested ? r->pid : (u32)bpf_get_current_pid_tgid();
        /* The process's, not that of the thread which happens to be the last. */
        read_comm(h, r->comm, leader);
        read_exec_time(r);
        r->status = exit_status(h, signal, leader);
        emit_process(ctx, k, &p);
    }
    if (h->cfg->tree) {
        u32 pid = visible_pid(h, leader, level);
        if (pid)
            tree.delete(&pid);
    }
    return 0;
}

/* args: struct task_struct *p, bool group_dead
 * The second since Linux 6.16 ("exit: move and extend sched_process_exit()
 * tracepoint"); a program that reads it does not attach to older ones. */
INLINE int on_exit_group_dead(struct bpf_raw_tracepoint_args *ctx, bool nested)
{
    void *task = (void *)ctx->args[0];
    bool group_dead = ctx->args[1];
    const struct how how = HOW(nested, true), *h = &how;
    struct kind k;

    if (!group_dead || !begin(&k, h, KIND_EXIT))
        return 0;
    return on_last_exit(ctx, &k, task, POINTER(task, task_signal));
}

/* args: struct task_struct *p */
INLINE int on_exit(struct bpf_raw_tracepoint_args *ctx, bool nested)
{
    void *task = (void *)ctx->args[0];
    struct exit_key key = {};
    u8 one = 1;
    const struct how how = HOW(nested, true), *h = &how;
    struct kind k;

    if (!begin(&k, h, KIND_EXIT))
        return 0;
    void *signal = POINTER(task, task_signal);
    void *leader = POINTER(task, task_group_leader);
    if (U32(signal, signal_live))
        return 0;
    /* Threads that go at once may each see the last one's zero: the first of them counts. */
    key.host_pid = U32(leader, task_tgid);
    key.start_boottime_ns = start_of(h, leader);
    if ((h->cfg->exits || get_switches().track) && ended.insert(&key, &one))
        return 0;
    return on_last_exit(ctx, &k, task, signal);
}

/* ---- The other way: kprobes ------------------------------------------------------------ */

/* Where a kernel has no tracepoints: a kprobe on the entry of execve and execveat, a
 * kretprobe on their return, and between them one on setup_new_exec, which is where the
 * kernel has taken the program on and still knows its names. Registers are x86_64's. */
#define ENTRY_ARGUMENT 112 /* struct pt_regs: di */
#define RETURN_VALUE 80    /* ax */
#define REGISTER(ctx, offset) (*(u64 *)((char *)(ctx) + (offset)))

/* A call between its entry and its return. */
struct in_flight {
    struct call call;
    char data[2 * PATH_SIZE_MAX];
};

/* By task: the thread that calls may have another id when it returns. What a missed
 * return leaves behind is taken out by the tracer. */
BPF_HASH(in_flight, u64, struct in_flight, 1);
BPF_PERCPU_ARRAY(entering, struct in_flight, 1);

INLINE int enter(const struct how *h, struct call *call)
{
    u64 task = bpf_get_current_task();
    u32 zero = 0, kind = KIND_EXEC;
    struct counters *count = counters.lookup(&kind);
    struct in_flight *f = entering.lookup(&zero);

    if (!count || !f)
        return 0;
    f->call = *call;
    f->call.entered_ns = now(h);
    f->call.host_tid = bpf_get_current_pid_tgid();
    if (in_flight.update(&task, f))
        count->lost++;
    else
        count->entered++;
    return 0;
}

INLINE int on_entry(void *ctx, bool at, bool compat, bool nested)
{
    const void *regs = (const void *)REGISTER(ctx, ENTRY_ARGUMENT);
    struct call call = {};
    u32 zero = 0;
    const struct how how = HOW(nested, false), *h = &how;
    struct in_flight *f = entering.lookup(&zero);

    if (!f)
        return 0;
    call.compat = compat;
    if (compat) {
        call.filename = (u32)read_u64(h, regs, at ? h->cfg->offset_regs_cx : h->cfg->offset_regs_bx);
        call.argv = (u32)read_u64(h, regs, at ? h->cfg->offset_regs_dx : h->cfg->offset_regs_cx);
    } else {
        call.filename = read_u64(h, regs, at ? h->cfg->offset_regs_si : h->cfg->offset_regs_di);
        call.argv = read_u64(h, regs, at ? h->cfg->offset_regs_dx : h->cfg->offset_regs_si);
    }
    void *task = (void *)bpf_get_current_task();
    if (nested) {
        call.level = tracer_level(h, &f->call.level, task);
        call.tid = visible_pid(h, task, call.level);
    } else
        call.tid = bpf_get_current_pid_tgid();
    return enter(h, &call);
}

/* void setup_new_exec(struct linux_binprm *bprm): the new credentials are in place, the
 * names are still there. */
INLINE int on_setup_new_exec(void *ctx)
{
    const void *bprm = (const void *)REGISTER(ctx, ENTRY_ARGUMENT);
    u64 task = bpf_get_current_task();
    const struct how how = HOW(false, false), *h = &how;
    struct in_flight *f = in_flight.lookup(&task);

    if (!f)
        return 0;
    const char *filename = POINTER(bprm, bprm_filename);
    const char *interp = POINTER(bprm, bprm_interp);
    f->call.argc = U32(bprm, bprm_argc);
    f->call.bits = gains(h, bprm);
    u64 size = opaque(bpf_probe_read_kernel_str(f->data, PATH_SIZE_MAX, filename));
    if (size > PATH_SIZE_MAX)
        return 0;
    f->call.filename_size = size;
    if (interp != filename) {
        u64 more = opaque(bpf_probe_read_kernel_str(f->data + size, PATH_SIZE_MAX, interp));
        if (more > PATH_SIZE_MAX)
            return 0;
        f->call.interp_size = more;
    }
    f->call.valid = VALID_INTERP;
    return 0;
}

/* The new program is in place and about to run its first instruction. */
INLINE void on_success(void *ctx, const struct how *h, struct in_flight *f, void *task)
{
    struct exec e;

    if (!task || !begin_exec(&e, h))
        return;
    struct record *r = &e.s->record;
    u32 level = f->call.level;
    e.count->seen++;
    struct process p = process_of(h, task);
    read_identity(h, r, &p, level);
    r->tid = f->call.tid;
    r->argc = f->call.argc;
    r->valid |= f->call.valid;
    e.s->context.bits = f->call.bits;
    note_exec_time(h, r);
    if (!wanted(h, r)) {
        e.count->filtered++;
        return;
    }
    if (crowded(h, r)) {
        e.count->lost++;
        return;
    }
    r->filename_size = f->call.filename_size;
    r->interp_size = f->call.interp_size;
    u64 size = opaque((u64)r->filename_size + r->interp_size);
    if (size > NAMES_MAX) { /* never: for the verifier */
        e.count->lost++;
        return;
    }
    bpf_probe_read_kernel(e.s->data, size, f->data);
    END(r) = size;

    void *mm = POINTER(task, task_mm);
    capture(h, e.s, &p, mm, level);
    emit_with_argv(ctx, &e, mm);
}

INLINE int on_return(void *ctx, bool nested)
{
    long result = (long)REGISTER(ctx, RETURN_VALUE);
    u64 task = bpf_get_current_task();
    u32 kind = KIND_EXEC;
    const struct how how = HOW(nested, false), *h = &how;
    struct counters *count = counters.lookup(&kind);
    struct in_flight *f = in_flight.lookup(&task);
    struct kind k;

    if (!count || !f) /* it had entered before the probes were there */
        return 0;
    count->returned++;
    if (result == 0)
        on_success(ctx, h, f, (void *)task);
    else if (h->cfg->failed && result < 0 && result > -512 && begin_failure(&k, h))
        on_failure(ctx, &k, &f->call, -result, f->call.tid, f->call.level);
    in_flight.delete(&task);
    return 0;
}

/* ---- Programs: two of each, see visible_pid ----------------------------------------
 *
 * All of them are in the shipped image. Where BCC has to compile on a machine, it takes
 * a tenth of a second for each, so only those are compiled that the tracer wants:
 * NESTED, KPROBE, PROCESSES, FAILED and LARGE are defined as 0 or 1 then. */

#if !defined(NESTED) || NESTED == 0
#if !defined(PROCESSES) || PROCESSES

RAW_TRACEPOINT_PROBE(sched_process_fork)
{
    return on_fork(ctx, false);
}

RAW_TRACEPOINT_PROBE(sched_process_exit)
{
    return on_exit(ctx, false);
}

RAW_TRACEPOINT_PROBE(sched_process_exit__group_dead)
{
    return on_exit_group_dead(ctx, false);
}

#endif
#if !defined(KPROBE) || KPROBE == 0

RAW_TRACEPOINT_PROBE(sched_process_exec)
{
    return on_exec(ctx, false);
}

#if !defined(FAILED) || FAILED

RAW_TRACEPOINT_PROBE(sys_exit)
{
    return on_sys_exit(ctx, false);
}

#endif

#endif
#if !defined(KPROBE) || KPROBE == 1

int kprobe__execve(void *ctx)
{
    return on_entry(ctx, false, false, false);
}

int kprobe__execveat(void *ctx)
{
    return on_entry(ctx, true, false, false);
}

int kprobe__compat_execve(void *ctx)
{
    return on_entry(ctx, false, true, false);
}

int kprobe__compat_execveat(void *ctx)
{
    return on_entry(ctx, true, true, false);
}

int kretprobe__exec(void *ctx)
{
    return on_return(ctx, false);
}

#endif
#endif

#if !defined(NESTED) || NESTED == 1
#if !defined(PROCESSES) || PROCESSES

RAW_TRACEPOINT_PROBE(sched_process_fork__nested)
{
    return on_fork(ctx, true);
}

RAW_TRACEPOINT_PROBE(sched_process_exit__nested)
{
    return on_exit(ctx, true);
}

RAW_TRACEPOINT_PROBE(sched_process_exit__group_dead_nested)
{
    return on_exit_group_dead(ctx, true);
}

#endif
#if !defined(KPROBE) || KPROBE == 0

RAW_TRACEPOINT_PROBE(sched_process_exec__nested)
{
    return on_exec(ctx, true);
}

#if !defined(FAILED) || FAILED

RAW_TRACEPOINT_PROBE(sys_exit__nested)
{
    return on_sys_exit(ctx, true);
}

#endif

#endif
#if !defined(KPROBE) || KPROBE == 1

int kprobe__execve__nested(void *ctx)
{
    return on_entry(ctx, false, false, true);
}

int kprobe__execveat__nested(void *ctx)
{
    return on_entry(ctx, true, false, true);
}

int kprobe__compat_execve__nested(void *ctx)
{
    return on_entry(ctx, false, true, true);
}

int kprobe__compat_execveat__nested(void *ctx)
{
    return on_entry(ctx, true, true, true);
}

int kretprobe__exec__nested(void *ctx)
{
    return on_return(ctx, true);
}

#endif
#endif

#if !defined(KPROBE) || KPROBE == 1

int kprobe__setup_new_exec(void *ctx)
{
    return on_setup_new_exec(ctx);
}

/* int kernel_execve(const char *filename, ...): programs that the kernel itself starts */
int kprobe__kernel_execve(void *ctx)
{
    const struct how how = HOW(false, false), *h = &how;
    struct call call = {};

    call.tid = bpf_get_current_pid_tgid();
    return enter(h, &call);
}

#endif
