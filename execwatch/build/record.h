/* Made by `nox -s images` from execwatch/wire.py, which explains it. Do not edit. */

#define KIND_EXEC 0x0
#define KIND_FAILED 0x1
#define KIND_FORK 0x2
#define KIND_EXIT 0x3
#define KINDS 0x4
#define FLAG_ARGV_TRUNCATED 0x1
#define FLAG_ARGV_UNREADABLE 0x2
#define FLAG_EXCLUDED 0x4
#define FLAG_UNDECIDED 0x8
#define FLAG_UNWANTED 0x10
#define FLAG_INJECTED 0x20
#define FLAG_OWN 0x40
#define FLAG_ENV_TRUNCATED 0x80
#define FLAG_CGROUP_CUT 0x100
#define VALID_PPID 0x1
#define VALID_PARENT_START 0x2
#define VALID_PARENT_COMM 0x4
#define VALID_START 0x8
#define VALID_CGROUP 0x10
#define VALID_MNT_NS 0x20
#define VALID_INTERP 0x40
#define VALID_EXEC_TIME 0x80
#define VALID_CREDS 0x100
#define VALID_SESSION 0x200
#define VALID_NAMESPACES 0x400
#define VALID_EXE 0x800
#define VALID_EXE_PATH 0x1000
#define VALID_EXE_CTIME 0x2000
#define VALID_CWD 0x4000
#define VALID_CGROUP_PATH 0x8000
#define VALID_ENV 0x10000
#define CONTEXT_GAINED 0x1
#define CONTEXT_SECURE 0x2
#define CONTEXT_SECURE_KNOWN 0x4
#define CONTEXT_USER_NS 0x8
#define CONTEXT_DETACHED 0x10
#define CONTEXT_UNHASHED 0x20
#define CONTEXT_NOSUID 0x40
#define CAPTURE_CREDS 0x1
#define CAPTURE_SESSION 0x2
#define CAPTURE_NAMESPACES 0x4
#define CAPTURE_EXE 0x8
#define CAPTURE_CWD 0x10
#define CAPTURE_CONTAINER 0x20
#define FILTER_UID 0x1
#define FILTER_PID 0x2
#define FILTER_PPID 0x4
#define FILTER_COMM 0x8
#define FILTER_CGROUP 0x10
#define FILTER_MNT_NS 0x20
#define FILTER_TREE 0x40
#define FILTER_CONTAINER 0x80
#define PART_INCLUDE 0x1
#define PART_EXCLUDE 0x2
#define ABSENT 0xffffffff
#define ARGV_SIZE_MAX 0x4000
#define ENV_SIZE_MAX 0x4000
#define PATH_SIZE_MAX 0x1000
#define NAME_SIZE_MAX 0x400
#define PATH_DEPTH_MAX 0x38
#define CGROUP_DEPTH_MAX 0x18
#define CGROUP_SKIP_MAX 0x80
#define ANCESTORS_MAX 0x20
#define LARGE_HEAD_MAX 0xa000
#define BLOCK_SIZE_MAX 0x100
#define COMM_SIZE 0x10
#define PID_NS_LEVELS 0x21
#define FAILED_ARGS_MAX 0x40
#define CONFIG_MARK "0x6769666e6f637765"

struct record {
    u32 size;
    u16 kind;
    u16 flags;
    u64 valid;
    u64 boottime_ns;
    u64 lost;
    u32 cpu;
    u32 pid;
    u32 tid;
    u32 host_pid;
    u32 ppid;
    u32 uid;
    u32 gid;
    u32 argc;
    u32 status;
    u32 mnt_ns;
    u64 start_boottime_ns;
    u64 parent_start_boottime_ns;
    u64 exec_boottime_ns;
    u64 cgroup_id;
    u32 filename_size;
    u32 interp_size;
    u32 exe_size;
    u32 cwd_size;
    u32 cgroup_size;
    u32 env_size;
    u32 argv_size;
    u32 level;
    char comm[16];
    char parent_comm[16];
};

struct context {
    u32 uid;
    u32 gid;
    u32 suid;
    u32 sgid;
    u32 euid;
    u32 egid;
    u32 fsuid;
    u32 fsgid;
    u64 cap_inheritable;
    u64 cap_permitted;
    u64 cap_effective;
    u64 cap_bounding;
    u64 cap_ambient;
    u32 loginuid;
    u32 sessionid;
    u32 owner;
    u32 group;
    u32 bits;
    u32 mode;
    u64 inode;
    u64 file_size;
    u64 ctime_s;
    u32 ctime_ns;
    u32 device;
    u32 sid;
    u32 pgid;
    u32 tty_major;
    u32 tty_minor;
    u32 vpid;
    u32 pid_ns;
    u32 net_ns;
    u32 uts_ns;
    u32 ipc_ns;
    u32 cgroup_ns;
    u32 user_ns;
    u32 time_ns;
};

struct config {
    u64 pid_ns;
    u64 boot_offset_ns;
    u64 tick_ns;
    u32 argv_size;
    u32 env_size;
    u32 capture;
    u32 cgroup_index;
    u32 include;
    u32 exclude;
    u32 exclude_final;
    u32 tree;
    u32 forks;
    u32 exits;
    u32 failed;
    u32 typed;
    u32 perf;
    u32 room_failed;
    u32 room_process;
    u32 offset_task_pid;
    u32 offset_task_tgid;
    u32 offset_task_real_parent;
    u32 offset_task_group_leader;
    u32 offset_task_start_boottime;
    u32 offset_task_comm;
    u32 offset_task_thread_pid;
    u32 offset_task_signal;
    u32 offset_task_exit_code;
    u32 offset_task_thread_status;
    u32 offset_task_mm;
    u32 offset_task_nsproxy;
    u32 offset_task_cgroups;
    u32 offset_signal_live;
    u32 offset_signal_flags;
    u32 offset_signal_group_exit_code;
    u32 offset_regs_orig_ax;
    u32 offset_regs_bx;
    u32 offset_regs_cx;
    u32 offset_regs_dx;
    u32 offset_regs_si;
    u32 offset_regs_di;
    u32 offset_mm_arg_start;
    u32 offset_mm_arg_end;
    u32 offset_bprm_filename;
    u32 offset_bprm_interp;
    u32 offset_bprm_argc;
    u32 offset_pid_level;
    u32 offset_pid_numbers;
    u32 offset_upid_ns;
    u32 offset_pid_namespace_inum;
    u32 offset_nsproxy_mnt_ns;
    u32 offset_mnt_namespace_inum;
    u32 offset_css_set_subsys;
    u32 offset_css_set_dfl_cgrp;
    u32 offset_css_cgroup;
    u32 offset_cgroup_kn;
    u32 offset_cgroup_level;
    u32 offset_kernfs_node_id;
    u32 offset_kernfs_node_parent;
    u32 offset_kernfs_node_name;
    u32 offset_task_cred;
    u32 offset_task_loginuid;
    u32 offset_task_sessionid;
    u32 offset_task_fs;
    u32 offset_cred_uid;
    u32 offset_cred_caps;
    u32 offset_cred_user_ns;
    u32 offset_user_namespace_level;
    u32 offset_bprm_per_clear;
    u32 offset_signal_tty;
    u32 offset_tty_driver;
    u32 offset_tty_index;
    u32 offset_tty_driver_major;
    u32 offset_tty_driver_minor_start;
    u32 offset_nsproxy_uts_ns;
    u32 offset_nsproxy_ipc_ns;
    u32 offset_nsproxy_net_ns;
    u32 offset_nsproxy_time_ns;
    u32 offset_nsproxy_cgroup_ns;
    u32 offset_uts_namespace_inum;
    u32 offset_ipc_namespace_inum;
    u32 offset_net_inum;
    u32 offset_time_namespace_inum;
    u32 offset_cgroup_namespace_inum;
    u32 offset_user_namespace_inum;
    u32 offset_mm_exe_file;
    u32 offset_mm_env_start;
    u32 offset_mm_env_end;
    u32 offset_file_mnt;
    u32 offset_file_dentry;
    u32 offset_file_inode;
    u32 offset_fs_pwd_mnt;
    u32 offset_fs_pwd_dentry;
    u32 offset_mount_mnt;
    u32 offset_mount_mnt_ns;
    u32 offset_mount_mnt_parent;
    u32 offset_mount_mnt_mountpoint;
    u32 offset_vfsmount_mnt_root;
    u32 offset_vfsmount_mnt_flags;
    u32 offset_dentry_d_parent;
    u32 offset_dentry_name;
    u32 offset_dentry_hashed;
    u32 offset_inode_ino;
    u32 offset_inode_sb;
    u32 offset_inode_mode;
    u32 offset_inode_size;
    u32 offset_inode_uid;
    u32 offset_inode_gid;
    u32 offset_inode_ctime_s;
    u32 offset_inode_ctime_ns;
    u32 offset_super_block_dev;
    u32 offset_signal_sid;
    u32 offset_signal_pgid;
    u32 bit_bprm_secureexec;
    u32 first_dentry;
    u32 size_dentry;
    u32 first_mount;
    u32 size_mount;
    u32 at_dentry_d_parent;
    u32 at_dentry_name;
    u32 at_mount_mnt_parent;
    u32 at_mount_mnt_mountpoint;
};

struct switches {
    u32 arming;
    u32 track;
};

struct filter_key {
    char value[16];
    u32 field;
};

struct tree_value {
    u64 start_ticks;
    u32 parts;
    u32 reserved;
};

struct fork_value {
    u64 start_ticks;
    u32 parent;
    u32 reserved;
};

struct exit_key {
    u64 start_boottime_ns;
    u32 host_pid;
    u32 reserved;
};

struct call {
    u64 filename;
    u64 argv;
    u64 compat;
    u64 valid;
    u32 tid;
    u32 argc;
    u32 filename_size;
    u32 interp_size;
    u64 entered_ns;
    u32 host_tid;
    u32 level;
    u32 bits;
    u32 reserved;
};

struct counters {
    u64 filtered;
    u64 lost;
    u64 argv_unreadable;
    u64 argv_truncated;
    u64 tree_full;
    u64 returned;
    u64 entered;
    u64 seen;
};
