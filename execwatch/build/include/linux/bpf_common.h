/* BCC's bpf.h takes the instruction classes and sizes of classic BPF from it. */
