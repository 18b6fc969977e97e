/* BCC chooses helpers by it: the oldest kernel that we support, whatever runs here, so that an image fits all. */
#pragma once
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 8, 0)
