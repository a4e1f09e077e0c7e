/* May what was compiled run here? */

#ifdef AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* whether this processor has what this file was compiled for */
int usable(void)
{
#ifdef BF16
    if (!__builtin_cpu_supports("avx512bf16")) return 0;
#endif
#ifdef AMX
    unsigned a, b, c, d = 0; /* the processor has to multiply tiles, and the system to keep them for us */
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || ~d & (1 << 22 | 1 << 24)) return 0;
    if (syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* their contents */)) return 0;
#endif
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
