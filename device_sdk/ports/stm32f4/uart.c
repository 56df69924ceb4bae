/* SPDX-License-Identifier: Apache-2.0
 *
 * USART1 with two rings. The receiver fills its ring from the interrupt; the transmitter is emptied by whoever finds
 * the data register free: the interrupt on the part, the writer itself in emulators that raise no transmit interrupt.
 */
#include "chip.h"
#include "fedmote_board.h"
#include "registers.h"
#include "ring.h"
#include "stm32f4.h"

static volatile uint8_t received_bytes[2048], sending_bytes[2048];
static struct ring received = RING_OVER(received_bytes), sending = RING_OVER(sending_bytes);

/* Only with the transmit interrupt off, or from it: the sending ring has one consumer at a time. */
static void send_while_free(void) {
    uint8_t byte;
    while ((USART1_SR & USART_SR_SENDABLE) != 0U && ring_take(&sending, &byte)) {
        USART1_DR = byte;
    }
}

void usart1_handler(void);

void usart1_handler(void) {
    uint32_t flags = USART1_SR;
    /* Reading the data register clears both flags; after an overrun the byte itself is good, the one behind it is gone.
     */
    if ((flags & (USART_SR_RECEIVED | USART_SR_OVERRUN)) != 0U) {
        uint8_t byte = (uint8_t)USART1_DR;
        if ((flags & USART_SR_RECEIVED) != 0U) {
            (void)ring_put(&received,
                           byte); /* a full ring loses the byte; the frame that it was part of is asked for again */
        }
    }
    if ((USART1_CR1 & USART_CR1_SENDABLE_INTERRUPT) != 0U) {
        send_while_free();
        if (ring_is_empty(&sending)) {
            USART1_CR1 &= ~USART_CR1_SENDABLE_INTERRUPT;
        }
    }
}

void stm32_uart_start(void) {
    RCC_AHB1ENR |= RCC_AHB1ENR_GPIOA;
    RCC_APB2ENR |= RCC_APB2ENR_USART1;
    /* PA9 and PA10: alternate function 7; the input is pulled up, so that an open line reads as idle. */
    GPIO_MODER(GPIOA_BASE) = (GPIO_MODER(GPIOA_BASE) & ~(0xFU << 18)) | (0xAU << 18);
    GPIO_PUPDR(GPIOA_BASE) = (GPIO_PUPDR(GPIOA_BASE) & ~(3U << 20)) | (1U << 20);
    GPIO_AFR_HIGH(GPIOA_BASE) = (GPIO_AFR_HIGH(GPIOA_BASE) & ~(0xFFU << 4)) | (0x77U << 4);
    USART1_BRR = (stm32_peripheral_hz() + FEDMOTE_BOARD_UART_BAUD / 2U) / FEDMOTE_BOARD_UART_BAUD;
    USART1_CR1 = USART_CR1_ENABLE | USART_CR1_TRANSMITTER | USART_CR1_RECEIVER | USART_CR1_RECEIVED_INTERRUPT;
    NVIC_ENABLE(USART1_INTERRUPT / 32U) = 1U << (USART1_INTERRUPT % 32U);
}

static int32_t stream_read(void *context, uint8_t *bytes, uint32_t capacity) {
    (void)context;
    return ring_read(&received, bytes, capacity);
}

static int32_t stream_write(void *context, const uint8_t *bytes, uint32_t size) {
    (void)context;
    const int32_t count = ring_write(&sending, bytes, size);
    USART1_CR1 &= ~USART_CR1_SENDABLE_INTERRUPT;
    send_while_free();
    if (!ring_is_empty(&sending)) {
        USART1_CR1 |= USART_CR1_SENDABLE_INTERRUPT;
    }
    return count;
}

const struct fedmote_port chip_port = {.stream_read = stream_read, .stream_write = stream_write};
