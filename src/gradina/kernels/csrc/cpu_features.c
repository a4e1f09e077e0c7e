/* Whether this CPU and kernel support the instructions that the library was compiled for. */

#ifdef AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

int supported(void)
{
#ifdef BF16
    if (!__builtin_cpu_supports("avx512bf16")) return 0;
#endif
#ifdef AMX
    unsigned a, b, c, d = 0; /* bits 22, 24: amx-bf16, amx-tile; then Linux has to grant the process tile data */
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || ~d & (1 << 22 | 1 << 24)) return 0;
    if (syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XFEATURE_XTILEDATA */)) return 0;
#endif
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
}
