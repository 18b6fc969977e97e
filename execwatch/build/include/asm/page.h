/* BPF_RINGBUF_OUTPUT counts in pages: a multiple of any machine's, so that a ring of one can be made everywhere. */
#pragma once
#define PAGE_SIZE 65536
