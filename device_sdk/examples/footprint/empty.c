/* SPDX-License-Identifier: Apache-2.0
 *
 * What an image costs that does nothing: vectors and start-up of the board. The other side of footprint.c.
 */
int main(void) { return 0; }
