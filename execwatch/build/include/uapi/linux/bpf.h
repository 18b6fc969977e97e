/* BCC's helpers.h includes it after BCC's own copy, which has defined all of it. */
