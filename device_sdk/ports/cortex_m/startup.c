/* SPDX-License-Identifier: Apache-2.0
 *
 * Reset and vectors of any Cortex-M, from M0 to M55. Reset copies .data, clears .bss, switches float and vector
 * registers on and calls main(). Code that was compiled for aligned accesses alone runs with unaligned ones trapping. A
 * fault leaves a record in RAM that survives a reset, then halts as the chip does; a test build (FEDMOTE_SEMIHOSTING)
 * reports it to the debugger or emulator instead and ends with exit code 70.
 */
#include "startup.h"

#include "chip.h"
#include "core.h"

extern uint32_t image_data_load[], image_data_start[], image_data_end[], image_bss_start[], image_bss_end[];
extern uint32_t image_stack_top[];

int main(void);

__attribute__((section(".noinit"))) struct board_fault board_fault;

#ifdef FEDMOTE_SEMIHOSTING
#define SEMIHOSTING_WRITE 0x04U
#define SEMIHOSTING_EXIT 0x20U
#define EXIT_APPLICATION 0x20026U

static void semihosting(uint32_t operation, const void *argument) {
    register uint32_t r0 __asm("r0") = operation;
    register const void *r1 __asm("r1") = argument;
    __asm volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
}

static void say_hex(char *at, uint32_t value) {
    for (int32_t digit = 7; digit >= 0; digit--) {
        *at++ = "0123456789abcdef"[(value >> (4 * digit)) & 0xFU];
    }
}

static void report_fault(void) {
    static char text[] = "fault: pc=........ lr=........ cfsr=........ address=........\n";
    say_hex(text + 10, board_fault.pc);
    say_hex(text + 22, board_fault.lr);
    say_hex(text + 36, board_fault.cfsr);
    say_hex(text + 53, board_fault.address);
    const uint32_t stop[2] = {EXIT_APPLICATION, 70U};
    semihosting(SEMIHOSTING_WRITE, text);
    semihosting(SEMIHOSTING_EXIT, stop);
}
#else
static void report_fault(void) {}
#endif

__attribute__((noreturn, used)) static void fault_recorded(const uint32_t *frame) {
    board_fault.magic = BOARD_FAULT_MAGIC;
    board_fault.cfsr = SCB_CFSR;
    board_fault.hfsr = SCB_HFSR;
    board_fault.address = SCB_BFAR;
    /* The stack pointer itself may be what is wrong: read the frame only from RAM. */
    const uintptr_t at = (uintptr_t)frame;
    const uintptr_t top = (uintptr_t)image_stack_top;
    if (at >= (uintptr_t)image_data_start && at + 32U <= top) {
        board_fault.lr = frame[5];
        board_fault.pc = frame[6];
    } else {
        board_fault.lr = 0U;
        board_fault.pc = 0U;
    }
    report_fault();
    chip_halt();
}

/* Finds the frame on the stack that was in use, with instructions that every Cortex-M has. */
__attribute__((naked, used)) static void fault_handler(void) {
    __asm volatile("mrs r0, msp\n"
                   "mov r1, lr\n"
                   "movs r2, #4\n"
                   "tst r1, r2\n"
                   "beq 1f\n"
                   "mrs r0, psp\n"
                   "1: ldr r1, 2f\n"
                   "bx r1\n"
                   ".align 2\n"
                   "2: .word fault_recorded\n");
}

/* An interrupt that nobody enabled or handles is a bug as well: same record, same end. */
void unexpected_handler(void) __attribute__((alias("fault_handler")));
void systick_handler(void);
void systick_handler(void) __attribute__((weak, alias("fault_handler")));

/* The vectors of the core; those of the chip, if it has any, lie behind them. */
struct vectors {
    uint32_t *stack;
    board_handler core[15];
};
extern const struct vectors image_vectors;

static void arm_core(void) {
#ifndef __ARM_ARCH_6M__ /* which has none of these and traps unaligned accesses always */
    /* A chip may map a boot loader to address 0: interrupts find this table whoever started the image. */
    SCB_VTOR = (uint32_t)(uintptr_t)&image_vectors;
    SCB_SHCSR |= SCB_SHCSR_OWN_NAMES;
#endif
#if defined(__ARM_FP) || defined(__ARM_FEATURE_MVE)
    SCB_CPACR |= SCB_CPACR_FLOAT;
#endif
#ifndef __ARM_FEATURE_UNALIGNED
    SCB_CCR |=
        SCB_CCR_TRAP_UNALIGNED; /* set for ever on Armv6-M; whoever runs its code on another core wants the same */
#endif
    __asm volatile("dsb\nisb" ::: "memory");
}

__attribute__((noreturn)) void reset_handler(void);
__attribute__((noreturn)) void reset_handler(void) {
    arm_core(); /* before anything that the compiler may do with float registers */
    const uint32_t *from = image_data_load;
    for (uint32_t *to = image_data_start; (uintptr_t)to < (uintptr_t)image_data_end; to++) {
        *to = *from++;
    }
    for (uint32_t *to = image_bss_start; (uintptr_t)to < (uintptr_t)image_bss_end; to++) {
        *to = 0U;
    }
    (void)main();
    for (;;) {
    }
}

__attribute__((section(".vectors"), used)) const struct vectors image_vectors = {
    .stack = image_stack_top,
    .core =
        {
            reset_handler,
            fault_handler, /* non-maskable */
            fault_handler, /* hard fault */
            fault_handler, /* memory */
            fault_handler, /* bus */
            fault_handler, /* usage */
            0,
            0,
            0,
            0,
            unexpected_handler, /* supervisor call */
            unexpected_handler, /* debug monitor */
            0,
            unexpected_handler, /* pended supervisor call */
            systick_handler,
        },
};
