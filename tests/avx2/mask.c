/*
 * Lets a process believe that its processor has AVX2 and nothing newer: loaded with LD_PRELOAD, see tests/avx2.
 *
 * Libraries choose their kernels by what CPUID says. The kernel can make CPUID fault in user space where the processor
 * has CPUID faulting (/proc/cpuinfo: cpuid_fault); the handler below then executes it, takes AVX-512, AVX-VNNI, AVX10
 * and AMX out of the answer, and goes on behind the instruction. Everything computed afterwards runs at full speed with
 * the kernels of an AVX2 machine. Threads and forked children inherit the setting; exec drops it, and LD_PRELOAD sets it
 * again. Where it cannot be had the process ends with status 99 and says so: a test must never pass with other kernels
 * than it names.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_CPUID_SET 0x1012
#define FAULTS 0
#define WORKS 1
#define STATUS 99

#define BIT(number) (1u << (number))
/* Leaf 7, subleaf 0: AVX512 F DQ IFMA PF ER CD BW VL | VBMI VBMI2 VNNI BITALG VPOPCNTDQ | 4VNNIW 4FMAPS VP2INTERSECT,
 * AMX-BF16, AVX512-FP16, AMX-TILE, AMX-INT8. Subleaf 1: AVX-VNNI, AVX512-BF16, AMX-FP16, AVX-IFMA; all of EDX. */
#define LEAF7_EBX (BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31))
#define LEAF7_ECX (BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14))
#define LEAF7_EDX (BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25))
#define LEAF7_1_EAX (BIT(4) | BIT(5) | BIT(21) | BIT(23))

typedef int (*sigaction_fn)(int, const struct sigaction *, struct sigaction *);

/* What the program itself wants to happen on SIGSEGV (Python's faulthandler, say). */
static struct sigaction wanted;

static sigaction_fn real_sigaction(void) {
    static sigaction_fn found;
    if (!found) found = (sigaction_fn)dlsym(RTLD_NEXT, "sigaction");
    return found;
}

static void give_up(const char *words) {
    ssize_t ignored = write(2, words, strlen(words));
    (void)ignored;
    _exit(STATUS);
}

static void set_cpuid(long state) {
    if (syscall(SYS_arch_prctl, ARCH_CPUID_SET, state) != 0)
        give_up("avx2 mask: CPUID cannot be made to fault here (no cpuid_fault in /proc/cpuinfo, or arch_prctl is denied)\n");
}

static void answer_cpuid(greg_t *registers) {
    uint32_t leaf = registers[REG_RAX], subleaf = registers[REG_RCX];
    uint32_t a = leaf, b, c = subleaf, d;
    set_cpuid(WORKS);
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    set_cpuid(FAULTS);
    if (leaf == 7 && subleaf == 0) {
        b &= ~LEAF7_EBX;
        c &= ~LEAF7_ECX;
        d &= ~LEAF7_EDX;
    } else if (leaf == 7 && subleaf == 1) {
        a &= ~LEAF7_1_EAX;
        d = 0;
    } else if (leaf == 0x24 || leaf == 0x1d || leaf == 0x1e) { /* AVX10, AMX tiles */
        a = b = c = d = 0;
    }
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

static void on_fault(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)registers[REG_RIP];
    /* SI_KERNEL: a general protection fault, which is what CPUID raises; a jump to nowhere has no code to look at. */
    if (info->si_code == SI_KERNEL && code[0] == 0x0f && code[1] == 0xa2) {
        answer_cpuid(registers);
        return;
    }
    if (wanted.sa_flags & SA_SIGINFO)
        wanted.sa_sigaction(number, info, context);
    else if (wanted.sa_handler == SIG_DFL || wanted.sa_handler == SIG_IGN) {
        real_sigaction()(number, &wanted, NULL); /* it faults again, as it would have without us */
        if (info->si_code <= 0) raise(number);   /* somebody sent it: nothing will fault again */
    } else
        wanted.sa_handler(number);
}

static void install(void) {
    struct sigaction ours = {0};
    ours.sa_sigaction = on_fault;
    ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    real_sigaction()(SIGSEGV, &ours, NULL);
}

/* Whoever asks for SIGSEGV gets what the handler above leaves over. */
int sigaction(int number, const struct sigaction *action, struct sigaction *old) {
    if (number != SIGSEGV) return real_sigaction()(number, action, old);
    if (old) *old = wanted;
    if (action) {
        wanted = *action;
        install();
    }
    return 0;
}

void (*signal(int number, void (*handler)(int)))(int) {
    struct sigaction action = {0}, old;
    action.sa_handler = handler;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    return sigaction(number, &action, &old) == 0 ? old.sa_handler : SIG_ERR;
}

__attribute__((constructor)) static void begin(void) {
    wanted.sa_handler = SIG_DFL;
    install();
    set_cpuid(FAULTS);
}
