"""Numbers that people write: decimal notation and nothing else, the same in every file and on the command line.

YAML 1.1, YAML 1.2 and Python read `0040`, `1_000` and `1:40:00` each in its own way. None of them is a number here
(our choice); the error says what to write.
"""

import re
import unicodedata

from ..errors import show

INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)", re.ASCII)
DECIMAL = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?", re.ASCII)
LEADING_ZEROS = re.compile(r"([-+]?)0+([0-9][0-9]*(\.[0-9]*)?([eE][-+]?[0-9]+)?)", re.ASCII)
OTHER_BASES = {"b": 2, "o": 8, "x": 16}
BASES = {2: "binary", 8: "octal", 16: "hexadecimal"}
OF_A_BASE = re.compile(r"([-+]?)0([box])([0-9a-f_]+)", re.ASCII | re.IGNORECASE)
SEXAGESIMAL = re.compile(r"([-+]?)([0-9][0-9_]*)((?::[0-5]?[0-9])+)(\.[0-9_]*)?", re.ASCII)
NOT_FINITE = re.compile(r"[-+]?\.?(inf|infinity|nan)", re.ASCII | re.IGNORECASE)
DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt \t].*)?", re.ASCII)
WITH_UNIT = re.compile(r"(.*?[0-9.])\s*([A-Za-zµμ/]+)", re.ASCII)

PREFIXES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
PREFIXES |= {"m": 1e-3, "u": 1e-6, "µ": 1e-6, "μ": 1e-6, "n": 1e-9, "p": 1e-12, "c": 1e-2}
SPELLINGS = {  # unit of a key -> the same in lower case, as people write it
    "Hz": ("hz",),
    "W": ("w", "watt", "watts"),
    "m": ("m", "metre", "metres", "meter", "meters"),
    "s": ("s", "sec", "second", "seconds"),
    "bit": ("bit", "bits", "b"),
    "bit/s": ("bit/s", "bits/s", "bps", "b/s"),
    "FLOP/s": ("flop/s", "flops", "flops/s"),
    "J/FLOP": ("j/flop", "j"),
    "dBm/Hz": ("dbm/hz", "dbm"),
}
UNIT_OF_SUFFIX = {  # end of a key's name -> its unit, the longest first
    "_dbm_per_hz": "dBm/Hz",
    "_bit_per_s": "bit/s",
    "_j_per_flop": "J/FLOP",
    "_flops": "FLOP/s",
    "_bits": "bit",
    "_bit": "bit",
    "_hz": "Hz",
    "_w": "W",
    "_m": "m",
    "_s": "s",
}


def number_of(text: str) -> int | float | None:
    """-> the number that a decimal notation says, None where it is none; ValueError for one that no float can hold.

    Decimal notation: a sign or none; digits without a leading zero, with a decimal point or none (`5.` and `.5` too);
    an exponent or none (`3.5e9`, `3.5E+9`). Without point and exponent it is a whole number.
    """
    match = DECIMAL.fullmatch(text)
    if match is None:
        return None
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"must be a finite number, got {show(text)}, which is too large for a number")
    if INTEGER.fullmatch(text):
        return int(text)
    if value == 0 and re.search("[1-9]", match[1]):
        raise ValueError(f"must be a number that is not too small, got {show(text)}; write 0 if it is meant")
    return value


def decimal(text: str) -> int | float:
    """-> the number that a text says; ValueError, as the end of a sentence with what to write, where it says none."""
    value = number_of(text.strip())
    if value is None:
        raise ValueError(f"must be a number, got {show(text)}; {how_to_write(text)}")
    return value


def other_notation(text: str) -> str | None:
    """-> what a text is that some reader takes for another number, and what to write: the end of a sentence.

    None for a decimal notation, and for a text that no reader takes for a number.
    """
    if match := LEADING_ZEROS.fullmatch(text):
        written = match[1] + re.sub("^0+(?=[0-9])", "", match[2])
        octal = f" ({int(text, 8)} if it is octal)" if re.fullmatch("[-+]?0[0-7]+", text) else ""
        return f"begins with a zero, octal to some readers; write {written}{octal}"
    if match := OF_A_BASE.fullmatch(text):
        base = OTHER_BASES[match[2].lower()]
        digits = match[3].replace("_", "")
        try:
            decimal = f"; write {int(match[1] + digits, base)}" if len(digits) < 40 else ""
        except ValueError:
            decimal = ""
        return f"is {BASES[base]}{decimal or '; write it in decimal notation'}"
    if match := SEXAGESIMAL.fullmatch(text):
        return f"is a number to base 60 to some readers; write {_sexagesimal(match)}"
    if NOT_FINITE.fullmatch(text):
        return "is no finite number; write one"
    if DATE.fullmatch(text):
        return "is a date to some readers; write a number"
    without = text.replace("_", "")
    if "_" in text and text[:1] != "_":
        if LEADING_ZEROS.fullmatch(without):
            return f"has underscores and {other_notation(without)}"
        if DECIMAL.fullmatch(without):
            return f"has underscores; write {without}"
    return None


def _sexagesimal(match: re.Match[str]) -> str:
    parts = [int(part) for part in (match[2].replace("_", "") + match[3]).split(":")]
    if len(parts) > 6:
        return "a decimal number"
    value = 0
    for part in parts:
        value = value * 60 + part
    return f"{match[1]}{value}{(match[4] or '').replace('_', '')} if that is meant"


def unit_of(key: str) -> str:
    """-> the unit that a key's name ends in, empty for none."""
    return next((unit for suffix, unit in UNIT_OF_SUFFIX.items() if key.endswith(suffix)), "")


def how_to_write(text: str, key: str = "") -> str:
    """-> the end of a sentence: what to write instead of a text that should be a number; key: of the value."""
    text, unit = text.strip(), unit_of(key)
    in_unit = f", in {unit}" if unit else ""
    try:
        if number_of(text) is not None:
            return f"write {text} without quotes"
    except ValueError:
        return "no float can hold it"
    known = other_notation(text)
    if known is not None:
        return f"it {known}"
    plain = "".join(str(unicodedata.decimal(sign)) if sign.isdecimal() else sign for sign in text[:80])
    plain = unicodedata.normalize("NFKC", plain)
    if plain != text[:80] and DECIMAL.fullmatch(plain):
        return f"write {plain}, with the digits 0 to 9"
    if (match := WITH_UNIT.fullmatch(plain)) and DECIMAL.fullmatch(match[1].strip()):
        converted = _convert(float(match[1]), match[2], unit)
        return f"write the number alone{in_unit}" + (f": {converted:.12g}" if converted is not None else "")
    if re.search("[, ']", text) and re.fullmatch(r"[-+0-9.,' ]+", text):
        return "write a point for the decimals, and nothing between thousands"
    return f"write a number in decimal notation{in_unit}, such as 3.5e9"


def _convert(value: float, written_unit: str, unit: str) -> float | None:
    if unit == "W" and written_unit.lower() in ("dbm", "dbw"):
        return 10 ** (value / 10) / (1000 if written_unit.lower() == "dbm" else 1) if abs(value) < 1000 else None
    for spelling in SPELLINGS.get(unit, ()):
        if written_unit.lower().endswith(spelling):
            prefix = written_unit[: len(written_unit) - len(spelling)]
            if prefix == "m" and unit in ("Hz", "bit/s", "FLOP/s"):  # mhz is not millihertz
                prefix = "M"
            if prefix == "g":
                prefix = "G"
            if prefix in PREFIXES:
                bits = 8 if "B" in written_unit[len(prefix) :] and unit.startswith("bit") else 1
                return value * PREFIXES[prefix] * bits
    return None
