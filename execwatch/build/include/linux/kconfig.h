/* BCC includes it first of all, takes its presence for "this is a kernel tree", and wants this option set. */
#pragma once
#define CONFIG_BPF_SYSCALL 1
