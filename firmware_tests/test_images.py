# SPDX-License-Identifier: Apache-2.0
"""The images as files: what is in them, what is not, that they fit, and that the compiled examples compile."""

import re
import shutil
import subprocess

import pytest

from fedmote.package.boards import Board, board_names, sdk_root
from fedmote_hil import sizes
from fedmote_hil.build import Program, build, find_tool
from fedmote_hil.emulator import Emulator

_STRICT = ["-std=c99", "-Wall", "-Wextra", "-pedantic", "-Wconversion", "-Wshadow", "-Wmissing-prototypes", "-Werror"]
_missing = [tool for tool in ("arm-none-eabi-gcc", "qemu-system-arm") if shutil.which(tool) is None]
pytestmark = [pytest.mark.emulator, pytest.mark.skipif(bool(_missing), reason=f"not installed: {', '.join(_missing)}")]


def _symbols(path):
    lines = subprocess.run(["arm-none-eabi-nm", str(path)], capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.split()[-1]: int(line.split()[0], 16) for line in lines if len(line.split()) == 3}


_IMAGES = [
    (name, Program(program))
    for name in board_names()
    if (board := Board.load(name)).emulator is not None
    for program in board.programs
]


def _image(board, program):
    """As it goes onto a part; of boards that are emulated alone, as it is always run."""
    return build(board, program, is_checked=Program.DEVICE not in Board.load(board).programs)


@pytest.mark.parametrize(("board", "program"), _IMAGES)
def test_no_image_allocates_or_prints(board, program):
    names = set(_symbols(_image(board, program).path))
    assert "main" in names
    assert names.isdisjoint(
        {"malloc", "free", "calloc", "realloc", "_sbrk", "printf", "puts", "snprintf", "vsnprintf", "_printf_r"}
    )


@pytest.mark.parametrize(("board", "program"), _IMAGES)
def test_every_image_fits_its_flash_region(board, program):
    image = _image(board, program)
    assert image.binary is not None
    assert image.binary.stat().st_size <= image.board.region("image").bytes


# Interrupts of the chip, those that are handled, and where the stack begins: under journal and slots, if these are RAM.
@pytest.mark.parametrize(
    ("board", "count", "handled"),
    [
        ("stm32f405", 82, {15: "systick_handler", 16 + 37: "usart1_handler"}),
        ("lm3s6965", 44, {15: "systick_handler", 16 + 5: "uart0_handler"}),
        ("nrf51822", 26, {16 + 2: "uart0_handler", 16 + 9: "timer1_handler"}),
    ],
)
def test_the_vector_table_is_first_complete_and_points_into_the_image(board, count, handled):
    image = build(board)
    symbols = _symbols(image.path)
    content = image.binary.read_bytes()
    vectors = [int.from_bytes(content[4 * n : 4 * n + 4], "little") for n in range(16 + count)]
    base, ram = image.board.region("image").address, image.board.region("ram")
    kept = image.board.regions.get("ram_journal", image.board.regions.get("ram_slots"))
    assert vectors[0] == symbols["image_stack_top"] == (kept.address if kept else ram.address + ram.bytes)
    assert vectors[1] == symbols["reset_handler"] | 1
    assert symbols["image_interrupts"] == base + 4 * 16
    unexpected = symbols["unexpected_handler"] | 1
    assert {n: vectors[n] for n in range(15, len(vectors)) if vectors[n] != unexpected} == {
        number: symbols[name] | 1 for number, name in handled.items()
    }
    handlers = [vector for n, vector in enumerate(vectors[1:], 1) if n not in (7, 8, 9, 10, 13)]
    assert all(vector & 1 and base < vector < base + len(content) for vector in handlers)


def test_the_generated_header_has_the_numbers_of_the_board_file():
    image = build("stm32f405")
    header = (image.build_directory / "generated" / "fedmote_board.h").read_text(encoding="utf-8")
    macros = dict(re.findall(r"#define (FEDMOTE_BOARD_\w+) (\w+)", header))
    board = image.board
    for name in (
        "flash_bytes",
        "ram_bytes",
        "slot_bytes",
        "arena_bytes",
        "run_arena_bytes",
        "max_samples",
        "body_max",
        "stack_bytes",
    ):
        assert int(macros[f"FEDMOTE_BOARD_{name.upper()}"], 0) == getattr(board, name)
    for name, region in board.regions.items():
        assert int(macros[f"FEDMOTE_BOARD_REGIONS_{name.upper()}_ADDRESS"], 0) == region.address
        assert int(macros[f"FEDMOTE_BOARD_REGIONS_{name.upper()}_BYTES"], 0) == region.bytes


def test_the_sdk_keeps_its_promise_of_flash_and_its_frames_are_known():
    image = build("stm32f405", has_crypto=False)
    counted = sizes.read_map((image.build_directory / "fedmote-device.map").read_text(encoding="utf-8"))
    assert sizes.promised(counted) <= sizes.FLASH_LIMIT_BYTES
    section_bytes = subprocess.run(["arm-none-eabi-size", str(image.path)], capture_output=True, text=True, check=True).stdout
    text, data, *_ = (int(number) for number in section_bytes.splitlines()[1].split()[:3])
    # Equal strings of different objects are stored once, but the map lists each: never too few, hardly too many.
    assert text + data <= sum(counted.flash.values()) < 1.01 * (text + data)
    frames = sizes.largest_frames(image.build_directory)
    assert frames
    assert frames[0][1] < image.board.stack_bytes // 4


def test_the_committed_sizes_are_those_of_this_tree():
    assert sizes.main(["--check"]) == 0


@pytest.mark.parametrize("compiler", ["gcc", "arm-none-eabi-gcc"])
@pytest.mark.parametrize("source", ["ports/template/port.c", "examples/minimal/main.c"])
def test_template_port_and_minimal_example_compile_without_a_warning(compiler, source, tmp_path):
    root = sdk_root()
    includes = [f"-I{root / 'include'}", f"-I{root / 'ports' / 'template'}"]
    command = [compiler, *_STRICT, *includes, "-c", str(root / source), "-o", str(tmp_path / "out.o")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


# A host, four ports, four architectures.
@pytest.mark.parametrize("board", ["posix", "stm32f405", "lm3s6965", "nrf51822", "mps2-m0", "mps3-m55"])
def test_everything_of_a_board_compiles_strictly(board, tmp_path):
    root = sdk_root()
    cmake, ninja = find_tool("cmake"), find_tool("ninja")
    command = [cmake, "-S", str(root), "-B", str(tmp_path), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    command += [f"-DFEDMOTE_BOARD={board}", "-DFEDMOTE_STRICT=ON"]
    if board != "posix":
        command.append(f"-DCMAKE_TOOLCHAIN_FILE={root / 'cmake' / 'arm-none-eabi.cmake'}")
    for step in (command, [cmake, "--build", str(tmp_path)]):
        result = subprocess.run(step, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr


_PROGRAM = """
#include <stdint.h>
__attribute__((noreturn)) void chip_halt(void) { for (;;) {} }
int main(void) {
    static uint32_t words[2];
    static const uint32_t stop[2] = {0x20026U, 7U};
    uint32_t word;
    (void)words;
    __asm volatile("ldr %%0, [%%1]" : "=r"(word) : "r"(%s) : "memory");
    register uint32_t r0 __asm("r0") = 0x20U;
    register const void *r1 __asm("r1") = stop;
    __asm volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return (int)word;
}
"""
_UNALIGNED = "(uintptr_t)words + 1U"


def _run_on_start_up(board, address, directory):
    """Runs a program that loads a word, behind the start-up of a board, and ends with 7: (exit code, what was said, symbols)."""
    image, root = build(board, Program.RUN, is_checked=True), sdk_root()
    source, linked = directory / "program.c", directory / "program.elf"
    source.write_text(_PROGRAM % address)
    core = [f"-mcpu={image.board.core}", "-mthumb", f"-mfloat-abi={'hard' if image.board.has_fpu else 'soft'}"]
    core += ["-masm-syntax-unified", *(["-mno-unaligned-access"] if image.board.is_unaligned_trapped else [])]
    command = ["arm-none-eabi-gcc", *core, "-O1", "-ffreestanding", "-nostartfiles", "-nostdlib", "-DFEDMOTE_SEMIHOSTING"]
    command += [f"-I{root / 'include'}", f"-I{root / 'ports' / 'cortex_m'}"]
    command += ["-T", str(image.build_directory / "fedmote-run.ld"), str(source)]
    command += [str(root / "ports" / "cortex_m" / "startup.c"), "-o", str(linked), "-lgcc"]
    subprocess.run(command, check=True)
    emulator = Emulator(image.board, linked, {}, "pty", directory)
    return emulator.wait(30), emulator.text(), _symbols(linked)


def _check_report(said, cfsr, address, symbols):
    report = re.search(rf"fault: pc=([0-9a-f]{{8}}) lr=[0-9a-f]{{8}} cfsr={cfsr} address={address}", said)
    assert report is not None, said
    assert symbols["main"] <= int(report[1], 16) < symbols["main"] + 16


@pytest.mark.parametrize(("board", "address"), [("stm32f405", "60000000"), ("mps3-m55", "0f000000")])
def test_a_fault_is_reported_with_place_and_address_and_ends_the_emulator(board, address, tmp_path):
    code, said, symbols = _run_on_start_up(board, f"0x{address}", tmp_path)
    assert code == 70
    _check_report(said, "00008200", address, symbols)


# An Armv6-M core has no register that tells the reason.
@pytest.mark.parametrize(("board", "cfsr"), [("mps2-m0", "01000000"), ("mps2-m4-aligned", "01000000"), ("nrf51822", "00000000")])
def test_an_unaligned_access_traps_where_the_code_must_not_make_one(board, cfsr, tmp_path):
    code, said, symbols = _run_on_start_up(board, _UNALIGNED, tmp_path)
    assert code == 70
    _check_report(said, cfsr, "[0-9a-f]{8}", symbols)


@pytest.mark.parametrize("board", ["mps2-m3", "mps2-m4", "mps2-m7", "mps3-m55", "stm32f405", "lm3s6965"])
def test_an_unaligned_access_is_one_elsewhere(board, tmp_path):
    assert _run_on_start_up(board, _UNALIGNED, tmp_path)[0] == 7
