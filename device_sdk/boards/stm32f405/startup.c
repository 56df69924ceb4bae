/* SPDX-License-Identifier: Apache-2.0
 *
 * Reset and interrupt vectors of the STM32F405. Reset copies .data, clears .bss, switches the FPU on and calls main().
 * A fault leaves a record in RAM that survives a reset, then blinks the LED on PC12 (the Olimex H405's) for ever; a
 * test build (FEDMOTE_SEMIHOSTING) reports it to the debugger or emulator instead and ends with exit code 70.
 */
#include <stdint.h>

#include "registers.h"
#include "startup.h"

extern uint32_t image_data_load[], image_data_start[], image_data_end[], image_bss_start[], image_bss_end[];
extern uint32_t image_stack_top[];

int main(void);

__attribute__((section(".noinit"))) struct board_fault board_fault;

#define WEAK_HANDLER __attribute__((weak, alias("unexpected_handler")))
#define LED_PIN 12U

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

__attribute__((noreturn)) static void blink_for_ever(void) {
    RCC_AHB1ENR |= RCC_AHB1ENR_GPIOC;
    GPIO_MODER(GPIOC_BASE) = (GPIO_MODER(GPIOC_BASE) & ~(3U << (2U * LED_PIN))) | (1U << (2U * LED_PIN));
    for (;;) {
        GPIO_ODR(GPIOC_BASE) ^= 1U << LED_PIN;
        for (volatile uint32_t turn = 0; turn < 1000000U; turn++) {
        }
    }
}

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
    blink_for_ever();
}

__attribute__((naked, used)) static void fault_handler(void) {
    __asm volatile("tst lr, #4\n"
                   "ite eq\n"
                   "mrseq r0, msp\n"
                   "mrsne r0, psp\n"
                   "b fault_recorded\n");
}

/* An interrupt that nobody enabled or handles is a bug as well: same record, same end. */
void unexpected_handler(void);
__attribute__((naked)) void unexpected_handler(void) { __asm volatile("b fault_handler"); }

void systick_handler(void) WEAK_HANDLER;
void usart1_handler(void) WEAK_HANDLER;

typedef void (*handler)(void);

/* 16 vectors of the core, then 82 of the part; number 37 is USART1, number 81 the FPU. */
struct vectors {
    uint32_t *stack;
    handler core[15];
    handler interrupts[82];
};
extern const struct vectors image_vectors;

__attribute__((noreturn)) void reset_handler(void);
__attribute__((noreturn)) void reset_handler(void) {
    /* The part maps flash or its boot loader to address 0: interrupts find this table whoever started the image. */
    SCB_VTOR = (uint32_t)(uintptr_t)&image_vectors;
    SCB_CPACR |= 0xFU << 20; /* before anything that the compiler may do with float registers */
    __asm volatile("dsb\nisb" ::: "memory");
    const uint32_t *from = image_data_load;
    for (uint32_t *to = image_data_start; (uintptr_t)to < (uintptr_t)image_data_end; to++) {
        *to = *from++;
    }
    for (uint32_t *to = image_bss_start; (uintptr_t)to < (uintptr_t)image_bss_end; to++) {
        *to = 0U;
    }
    SCB_SHCSR |= 7U << 16; /* memory, bus and usage faults by their own names */
    (void)main();
    for (;;) {
    }
}

#define UNUSED_4 unexpected_handler, unexpected_handler, unexpected_handler, unexpected_handler
#define UNUSED_16 UNUSED_4, UNUSED_4, UNUSED_4, UNUSED_4

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
    .interrupts =
        {
            UNUSED_16, UNUSED_16, UNUSED_4, unexpected_handler, /* 0 to 36 */
            usart1_handler,                                     /* 37 */
            UNUSED_16, UNUSED_16, UNUSED_4, UNUSED_4, unexpected_handler, unexpected_handler,
            unexpected_handler, /* 38 to 80 */
            unexpected_handler, /* 81: FPU */
        },
};
