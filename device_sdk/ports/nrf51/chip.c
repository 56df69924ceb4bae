/* SPDX-License-Identifier: Apache-2.0
 *
 * Clock and serial line of an nRF51822, and what a fault shows: the LED in the first row and column of the micro:bit
 * (P0.13 high, P0.4 low) blinks.
 */
#include "chip.h"

#include "fedmote_board.h"
#include "nrf51.h"
#include "registers.h"

#define START_TURNS 100000U /* some 30 ms; crystals need 1 ms */
#define LED_ROW (1U << 13)
#define LED_COLUMN (1U << 4)

/* The crystal is needed, but not waited for without end: the internal oscillator is within 6 % of it. */
void nrf51_clock_start(void) {
    CLOCK_EVENT_HF_STARTED = 0U;
    CLOCK_TASK_HF_START = 1U;
    for (uint32_t turn = 0; turn < START_TURNS && CLOCK_EVENT_HF_STARTED == 0U; turn++) {
    }
}

void nrf51_uart_start(void) {
    /* An output that idles high before the line drives it, an input that reads as idle where it is open. */
    GPIO_OUT_SET = 1U << FEDMOTE_BOARD_PERIPHERALS_PIN_SEND;
    GPIO_DIRECTION_SET = 1U << FEDMOTE_BOARD_PERIPHERALS_PIN_SEND;
    GPIO_PIN(FEDMOTE_BOARD_PERIPHERALS_PIN_RECEIVE) = GPIO_PIN_INPUT_PULLED_UP;
    UART0_PIN_SEND = FEDMOTE_BOARD_PERIPHERALS_PIN_SEND;
    UART0_PIN_RECEIVE = FEDMOTE_BOARD_PERIPHERALS_PIN_RECEIVE;
    /* 2^32 * baud / 16 MHz, of which the part uses the upper 20 bits. */
    UART0_BAUD = (uint32_t)((((uint64_t)FEDMOTE_BOARD_UART_BAUD << 32) / 16000000U + 0x800U) & 0xFFFFF000U);
    UART0_ENABLE = UART_ENABLED;
    UART0_EVENT_RECEIVED = 0U;
    UART0_EVENT_SENT = 0U;
    UART0_TASK_SEND = 1U;
    UART0_TASK_RECEIVE = 1U;
}

void chip_sleep(void) { __asm volatile("wfi" ::: "memory"); }

__attribute__((noreturn)) void chip_halt(void) {
    GPIO_DIRECTION_SET = LED_ROW | LED_COLUMN;
    GPIO_OUT_CLEAR = LED_COLUMN;
    for (;;) {
        GPIO_OUT_SET = LED_ROW;
        for (volatile uint32_t turn = 0; turn < 200000U; turn++) {
        }
        GPIO_OUT_CLEAR = LED_ROW;
        for (volatile uint32_t turn = 0; turn < 200000U; turn++) {
        }
    }
}
