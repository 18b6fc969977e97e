// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * The kernel half: one record for each program that starts.
 *
 * Compiled by BCC without kernel headers. No kernel structure is known here:
 * the offsets of their members come from the kernel's BTF and lie, with all
 * else that can differ from one tracer to the next, in the map `config`. So one
 * compiled image serves every kernel and every filter.
 *
 * What both halves have to agree on is in record.h, which is made from wire.py.
 */
#include <linux/types.h>
#include "record.h"

/* What BCC tells the kernel. */
#define BPF_LICENSE Dual MIT/GPL

#define INLINE static __always_inline

/* A record is put together here, then copied into the ring in one go. A per-CPU
 * value may not exceed 32 KiB. */
struct scratch {
    struct exec_record record;
    char data[2 * PATH_SIZE_MAX + ARGV_SIZE_MAX];
};

/* Sizes that stand here are the least; the loader sets those that matter. */
BPF_ARRAY(config, struct config, 1);
BPF_PERCPU_ARRAY(counters, struct counters, 1);
BPF_PERCPU_ARRAY(scratch, struct scratch, 1);
BPF_HASH(filters, struct filter_key, u8, 1);
BPF_HASH(tree, u32, struct tree_value, 1);
BPF_HASH(forks, u32, struct fork_value, 1);
BPF_RINGBUF_OUTPUT(events, 1);

/* ---- Kernel memory -------------------------------------------------------- */

/* Read a member. False where this kernel has no such member or the read failed,
 * and then the value is not to be used. */
INLINE bool read_member(void *to, u32 size, const void *base, u32 offset)
{
    if (!base || offset == ABSENT)
        return false;
    return bpf_probe_read_kernel(to, size, (const char *)base + offset) == 0;
}

/* A member that is a pointer; NULL where it can't be read. */
INLINE void *follow(const void *base, u32 offset)
{
    void *pointer = NULL;
    return read_member(&pointer, sizeof(pointer), base, offset) ? pointer : NULL;
}

/* A member that is a u32; 0 where it can't be read. */
INLINE u32 number(const void *base, u32 offset)
{
    u32 value = 0;
    return read_member(&value, sizeof(value), base, offset) ? value : 0;
}

/* The process id of a task's process in the tracer's pid namespace; 0 where it
 * has none there. `leader` is the leader of its thread group. With `nested` the
 * tracer is in a pid namespace of its own. That costs the verifier most of its
 * time, so such programs stand beside those without. */
INLINE u32 visible_pid(const struct config *cfg, void *leader, bool nested)
{
    if (!nested)
        return number(leader, cfg->offset_task_tgid);

    void *pid = follow(leader, cfg->offset_task_thread_pid);
    u32 level = number(pid, cfg->offset_pid_level);
    /* struct upid is { int nr; struct pid_namespace *ns; } in every kernel since 4.15. */
    const char *upid = (const char *)pid + cfg->offset_pid_numbers;

    for (u32 i = 0; i < PID_NS_LEVELS; i++, upid += 16) {
        if (!pid || i > level)
            break;
        void *ns = follow(upid, cfg->offset_upid_ns);
        if (number(ns, cfg->offset_pid_namespace_inum) == cfg->pid_ns)
            return number(upid, 0);
    }
    return 0;
}

INLINE u64 start_ticks(const struct config *cfg, u64 start_boottime_ns)
{
    return cfg->tick_ns ? start_boottime_ns / cfg->tick_ns : 0;
}

/* The id of the task's cgroup in the hierarchy that the loader chose; 0: unknown. */
INLINE u64 cgroup_id(const struct config *cfg, void *task)
{
    u64 id = 0;

    if (cfg->cgroup_index == ABSENT)
        return bpf_get_current_cgroup_id();
    void *set = follow(task, cfg->offset_task_cgroups);
    void *state = follow(set, cfg->offset_css_set_subsys + 8 * cfg->cgroup_index);
    void *cgroup = follow(state, cfg->offset_css_cgroup);
    void *node = follow(cgroup, cfg->offset_cgroup_kn);
    return read_member(&id, sizeof(id), node, cfg->offset_kernfs_node_id) ? id : 0;
}

/* ---- Who: the fixed part of a record --------------------------------------- */

INLINE void read_parent(const struct config *cfg, struct exec_record *r, void *task, bool nested)
{
    void *parent = follow(task, cfg->offset_task_real_parent);
    void *leader = follow(parent, cfg->offset_task_group_leader);

    r->ppid = visible_pid(cfg, leader, nested);
    if (r->ppid)
        r->valid |= VALID_PPID;
    if (read_member(&r->parent_start_boottime_ns, sizeof(u64), leader, cfg->offset_task_start_boottime))
        r->valid |= VALID_PARENT_START;
    if (read_member(&r->parent_comm, COMM_SIZE, leader, cfg->offset_task_comm))
        r->valid |= VALID_PARENT_COMM;
}

INLINE void read_namespaces(const struct config *cfg, struct exec_record *r, void *task)
{
    void *proxy = follow(task, cfg->offset_task_nsproxy);
    void *mnt = follow(proxy, cfg->offset_nsproxy_mnt_ns);

    r->mnt_ns = number(mnt, cfg->offset_mnt_namespace_inum);
    if (r->mnt_ns)
        r->valid |= VALID_MNT_NS;
}

/* At this point `task` leads its thread group, whichever thread called exec, and
 * `old_pid` is that thread's id before (exec_binprm in fs/exec.c). */
INLINE void read_identity(const struct config *cfg, struct exec_record *r, void *task, u32 old_pid,
                          bool nested)
{
    u64 ids = bpf_get_current_uid_gid();

    r->host_pid = bpf_get_current_pid_tgid() >> 32;
    r->pid = visible_pid(cfg, task, nested);
    /* The kernel has already freed the caller's own id in other namespaces. */
    r->tid = nested ? r->pid : old_pid;
    r->uid = ids;
    r->gid = ids >> 32;
    r->cpu = bpf_get_smp_processor_id();
    bpf_get_current_comm(&r->comm, COMM_SIZE);
    if (read_member(&r->start_boottime_ns, sizeof(u64), task, cfg->offset_task_start_boottime))
        r->valid |= VALID_START;
    r->cgroup_id = cgroup_id(cfg, task);
    if (r->cgroup_id)
        r->valid |= VALID_CGROUP;
    read_parent(cfg, r, task, nested);
    read_namespaces(cfg, r, task);
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

INLINE u32 parts_of_comm(const struct exec_record *r)
{
    struct filter_key key = {};

    key.field = FILTER_COMM;
    /* The kernel pads comm with NULs. */
    __builtin_memcpy(key.value, r->comm, COMM_SIZE);
    return parts_of_key(&key);
}

INLINE u32 parts_of_tree(const struct config *cfg, u32 pid, u64 start_boottime_ns)
{
    struct tree_value *member = tree.lookup(&pid);

    /* Another start time: the pid is used again, and its first owner's exit was not seen. */
    if (!member || member->start_ticks != start_ticks(cfg, start_boottime_ns))
        return 0;
    return member->parts;
}

struct hits {
    u32 include; /* FILTER_ bits */
    u32 exclude;
};

INLINE void note(struct hits *hits, u32 field, u32 parts)
{
    if (parts & PART_INCLUDE)
        hits->include |= field;
    if (parts & PART_EXCLUDE)
        hits->exclude |= field;
}

/* Whether the record passes. A filter holds if each field that it names does; an
 * exclusion that Python has to finish is noted in the record. */
INLINE bool passes(const struct config *cfg, struct exec_record *r)
{
    struct hits hits = {};
    u32 asked = cfg->include | cfg->exclude;

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
        note(&hits, FILTER_TREE, parts_of_tree(cfg, r->pid, r->start_boottime_ns));

    if ((hits.include & cfg->include) != cfg->include)
        return false;
    if ((hits.exclude & cfg->exclude) == cfg->exclude) {
        if (cfg->exclude_final)
            return false;
        r->flags |= FLAG_EXCLUDED;
    }
    return true;
}

/* ---- What: the strings behind the fixed part --------------------------------- */

/* The compiler knows bounds that the verifier does not, and drops the checks that
 * the verifier wants to see. This makes it forget what it knows of a value. */
INLINE u64 opaque(u64 value)
{
    asm volatile("" : "+r"(value));
    return value;
}

/* Each of these appends to the data at `at` and returns where the data ends then. */

INLINE u64 read_filename(struct scratch *s, const char *filename)
{
    u64 size = opaque(bpf_probe_read_kernel_str(s->data, PATH_SIZE_MAX, filename));

    if (size > PATH_SIZE_MAX) /* also a negative error */
        return 0;
    s->record.filename_size = size;
    return size;
}

INLINE u64 read_interp(struct scratch *s, const char *interp, u64 at)
{
    at = opaque(at);
    if (at > PATH_SIZE_MAX)
        return at;
    u64 size = opaque(bpf_probe_read_kernel_str(s->data + at, PATH_SIZE_MAX, interp));
    if (size > PATH_SIZE_MAX)
        return at;
    s->record.interp_size = size;
    s->record.valid |= VALID_INTERP;
    return at + size;
}

/* The kernel has just written these pages of the new program's stack, and nobody
 * has run there since: what is read is what the program gets. */
INLINE u64 read_argv(const struct config *cfg, struct scratch *s, void *task, u64 at)
{
    struct exec_record *r = &s->record;
    void *mm = follow(task, cfg->offset_task_mm);
    char *start = follow(mm, cfg->offset_mm_arg_start);
    char *end = follow(mm, cfg->offset_mm_arg_end);
    u64 size = end - start;

    if (size > cfg->argv_size) {
        size = cfg->argv_size;
        r->flags |= FLAG_ARGV_TRUNCATED;
    }
    at = opaque(at);
    size = opaque(size);
    if (at > 2 * PATH_SIZE_MAX || size > ARGV_SIZE_MAX)
        return at;
    if (!start || bpf_probe_read_user(s->data + at, size, start)) {
        r->flags = (r->flags & ~FLAG_ARGV_TRUNCATED) | FLAG_ARGV_UNREADABLE;
        return at;
    }
    r->argv_size = size;
    return at + size;
}

INLINE u64 read_strings(const struct config *cfg, struct scratch *s, void *task, void *bprm)
{
    const char *filename = follow(bprm, cfg->offset_bprm_filename);
    const char *interp = follow(bprm, cfg->offset_bprm_interp);
    u64 at = read_filename(s, filename);

    s->record.argc = number(bprm, cfg->offset_bprm_argc);
    if (interp == filename)
        s->record.valid |= VALID_INTERP;
    else
        at = read_interp(s, interp, at);
    return read_argv(cfg, s, task, at);
}

/* ---- Programs ---------------------------------------------------------------- */

/* args: struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm */
INLINE int on_exec(struct bpf_raw_tracepoint_args *ctx, bool nested)
{
    void *task = (void *)ctx->args[0];
    u32 old_pid = ctx->args[1];
    void *bprm = (void *)ctx->args[2];
    int zero = 0;
    struct config *cfg = config.lookup(&zero);
    struct counters *count = counters.lookup(&zero);
    struct scratch *s = scratch.lookup(&zero);

    if (!cfg || !count || !s)
        return 0;
    count->seen++;

    struct exec_record *r = &s->record;
    __builtin_memset(r, 0, sizeof(*r));
    r->kind = KIND_EXEC;
    read_identity(cfg, r, task, old_pid, nested);
    if (!r->pid || !passes(cfg, r)) {
        count->filtered++;
        return 0;
    }

    u64 size = sizeof(*r) + read_strings(cfg, s, task, bprm);
    if (r->flags & FLAG_ARGV_UNREADABLE)
        count->argv_unreadable++;
    if (r->flags & FLAG_ARGV_TRUNCATED)
        count->argv_truncated++;

    size = opaque(size);
    if (size > sizeof(*s))
        return 0;
    r->size = size;
    r->lost = count->lost;
    r->boottime_ns = bpf_ktime_get_boot_ns();
    /* Wakes the reader only if it had read all there was (BPF_RB_NO_WAKEUP is not
     * set); while it waits out its latency, nobody is woken and nobody pays. */
    if (events.ringbuf_output(s, size, 0))
        count->lost++;
    return 0;
}

/* args: struct task_struct *parent, struct task_struct *child */
INLINE int on_fork(struct bpf_raw_tracepoint_args *ctx, bool nested)
{
    void *child = (void *)ctx->args[1];
    int zero = 0;
    struct config *cfg = config.lookup(&zero);
    struct counters *count = counters.lookup(&zero);

    if (!cfg || !count)
        return 0;
    /* A thread is not a process. */
    if (number(child, cfg->offset_task_pid) != number(child, cfg->offset_task_tgid))
        return 0;

    void *task = (void *)bpf_get_current_task();
    void *leader = follow(task, cfg->offset_task_group_leader);
    u32 parent_pid = visible_pid(cfg, leader, nested);
    u32 child_pid = visible_pid(cfg, child, nested);
    u64 parent_start = 0, child_start = 0;

    read_member(&parent_start, sizeof(u64), leader, cfg->offset_task_start_boottime);
    read_member(&child_start, sizeof(u64), child, cfg->offset_task_start_boottime);

    struct tree_value member = {};
    member.start_ticks = start_ticks(cfg, child_start);
    member.parts = parts_of_tree(cfg, parent_pid, parent_start);

    /* While the loader brings in what runs already: log what is not (or not wholly)
     * known to belong, then look again. The loader inserts, then reads the log; so
     * a child whose parent comes into the tree just now is found by one of the two. */
    if (cfg->arming & ~member.parts) {
        struct fork_value fork = {};
        fork.start_ticks = member.start_ticks;
        fork.parent = parent_pid;
        if (forks.update(&child_pid, &fork))
            count->tree_full++;
        member.parts = parts_of_tree(cfg, parent_pid, parent_start);
    }
    if (member.parts && tree.update(&child_pid, &member))
        count->tree_full++;
    return 0;
}

/* args: struct task_struct *p (and more since Linux 6.16, not read here) */
INLINE int on_exit(struct bpf_raw_tracepoint_args *ctx, bool nested)
{
    void *task = (void *)ctx->args[0];
    int zero = 0;
    struct config *cfg = config.lookup(&zero);

    if (!cfg)
        return 0;
    /* Threads that exit at once may both see 0 here; a second delete does nothing. */
    void *signal = follow(task, cfg->offset_task_signal);
    if (number(signal, cfg->offset_signal_live))
        return 0;

    u32 pid = visible_pid(cfg, follow(task, cfg->offset_task_group_leader), nested);
    if (pid)
        tree.delete(&pid);
    return 0;
}

/* Two of each, see visible_pid; fork and exit are only loaded where a filter names
 * a tree of processes. */

RAW_TRACEPOINT_PROBE(sched_process_exec)
{
    return on_exec(ctx, false);
}

RAW_TRACEPOINT_PROBE(sched_process_exec__nested)
{
    return on_exec(ctx, true);
}

RAW_TRACEPOINT_PROBE(sched_process_fork)
{
    return on_fork(ctx, false);
}

RAW_TRACEPOINT_PROBE(sched_process_fork__nested)
{
    return on_fork(ctx, true);
}

RAW_TRACEPOINT_PROBE(sched_process_exit)
{
    return on_exit(ctx, false);
}

RAW_TRACEPOINT_PROBE(sched_process_exit__nested)
{
    return on_exit(ctx, true);
}
