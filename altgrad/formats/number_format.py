"""What the tensor side asks of a number format, whatever defines its values.

Two classes answer: `FloatFormat`, a formula (any ExMy), and `TableFormat`, a list of values (int8 with -128, NF4, LNS,
posit, HiF8, any other). Nothing outside this room and the arithmetic of grids asks which of the two it has.

    the grid     lowest, highest, min_positive, ranked
    scales       max, max_binade: where a scaling puts amax
    codes        bits, finite_codes, zero_codes, end_codes
    storage      mantissa_bits: whether bfloat16 holds what a cast makes

Roads not taken: a table as a FloatFormat with odd facts (every formula would ask whether it may be used), and an ExMy
as its own table (16 bits are 65,536 values, and bisection costs more than arithmetic).
"""

from abc import ABC, abstractmethod


class NumberFormat(ABC):
    """One number format. Hashable; `parse_format(str(f)) == f`."""

    name: str
    """The canonical name."""
    bits: int
    """Width of a code."""
    mantissa_bits: int
    """Bits behind the leading one that its values need; a float type with as many holds them all, range permitting."""
    max_binade: int
    """floor(log2(max))."""
    has_inf: bool
    has_nan: bool
    has_negative_zero: bool
    code_count: int
    """Number of codes that are finite values; two zeros count twice."""
    in_tensor_domain: bool
    """Whether casts in float32 are exact; see `require_tensor_domain`."""

    @property
    @abstractmethod
    def max(self) -> float:
        """The largest magnitude that both signs reach, to which scales bring an amax: nothing saturates there.

        For int8 it is 127, though -128 is a value; where all values have one sign it is the largest magnitude.
        """

    @property
    @abstractmethod
    def lowest(self) -> float:
        """The lowest finite value."""

    @property
    @abstractmethod
    def highest(self) -> float:
        """The highest finite value."""

    @property
    @abstractmethod
    def min_positive(self) -> float:
        """The smallest magnitude above zero."""

    @property
    @abstractmethod
    def flat_below(self) -> float:
        """The magnitude below which the grid is no longer relative: of an ExMy 2^e_min, of a table its smallest."""

    @property
    @abstractmethod
    def min_normal(self) -> float | None:
        """The smallest value of full precision; None where the format tells none from the others."""

    @property
    @abstractmethod
    def ranked(self) -> tuple[float, ...]:
        """Every finite value, ascending, one zero."""

    @property
    @abstractmethod
    def midpoint_bits(self) -> int:
        """Bits behind the leading one that the midpoints of neighbouring values need."""

    @property
    @abstractmethod
    def spacing_binades(self) -> range:
        """floor(log2) of the smallest to that of the largest gap between neighbours, as a range."""

    @property
    @abstractmethod
    def finite_codes(self) -> tuple[range, ...]:
        """The codes that are finite values, in runs, ascending."""

    @property
    @abstractmethod
    def zero_codes(self) -> tuple[int, ...]:
        """The codes whose value is zero."""

    @property
    @abstractmethod
    def end_codes(self) -> tuple[int, int]:
        """The codes of the highest and of the lowest value."""

    @property
    def is_symmetric(self) -> bool:
        """Whether each value's negative is a value."""
        return all(a == -b for a, b in zip(self.ranked, reversed(self.ranked), strict=True))

    def require_tensor_domain(self) -> None:
        """ValueError unless casts in float32 are exact for this format."""
        return

    @property
    def short_name(self) -> str:
        """The name, for tables and titles."""
        return self.name

    def __str__(self) -> str:
        return self.name
