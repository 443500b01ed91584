r"""The formulas of docstrings as LaTeX, for the HTML reference; `help()` shows them as they are.

A docstring writes `y - sigma^2 grad phi(y)`, which reads well in a terminal. The tables below say
what its names and signs are in LaTeX. An indented block that they translate becomes a displayed
formula, and so does each stretch of prose that can be nothing else an inline one. What they cannot
translate stays as it is.
"""

import re
from typing import NamedTuple

GREEK = {
    "sigma": r"\sigma", "phi": r"\varphi", "Phi": r"\Phi", "eps": r"\varepsilon", "eta": r"\eta",
    "alpha": r"\alpha", "beta": r"\beta", "gamma": r"\gamma", "delta": r"\delta", "chi": r"\chi",
    "theta": r"\theta", "lambda": r"\lambda", "mu": r"\mu", "tau": r"\tau",
}  # fmt: skip
# What stands in front of its operand, with or without brackets.
OPERATORS = {
    "grad": r"\nabla ", "div": r"\operatorname{div}", "Hess": r"\operatorname{Hess}",
    "log": r"\log ", "exp": r"\exp ", "tanh": r"\tanh ", "E": r"\operatorname{E}",
    "Var": r"\operatorname{Var}", "Cov": r"\operatorname{Cov}", "sum": r"\sum",
    "max": r"\operatorname{max}", "min": r"\operatorname{min}", "mean": r"\operatorname{mean}",
}  # fmt: skip
FENCES = {
    "norm": (r"{\lVert ", r"\rVert}"), "abs": (r"{\lvert ", r"\rvert}"), "sqrt": (r"\sqrt{", "}"),
}  # fmt: skip
SIGNS = {
    "+": "+", "-": "-", "=": "=", "<": "<", ">": ">", "/": "/", "~": r"\sim ", "∝": r"\propto ",
    "<=": r"\leq ", ">=": r"\geq ", "<-": r"\leftarrow ", "*": r"\cdot ", r"\*": r"\cdot ",
    "+=": r"\text{ += }", "-=": "\\text{ \u2212= }",
}  # fmt: skip
RELATIONS = {"=", "<", ">", "<=", ">=", "~", "∝", "<-", "+=", "-="}
BREAK = "\n"  # where a long formula in prose may go to the next line: MathML is never broken
# In prose these separate formulas, and not their parts, unless they stand in brackets.
SEPARATORS = {",": r",\;", ";": r";\;", "|": r"\mid ", "given": r"\mid "}
# Names that stand in formulas.
WORDS = {"loc", "scale", "network", "friction", "data", "rest", "frozen", "value", "mean"}
DIFFERENTIALS = {"dx", "dy", "dt", "dH"}
BRACKETS = {"(": ")", "[": "]"}

NUMBER = r"\d+(?:\.\d+)?(?!\w)"
NAME = r"\w+(?:(?<=_)(?:\{[\w+-]+\}|\([\w+-]+\)))?"  # with an index, as in x_(j-1)
TOKEN = re.compile(
    rf"\(Laplacian\s+of\s+phi\)|{NUMBER}|{NAME}|\.{{3}}|\\?\*|<=|>=|<-|\+=|-=|\S", re.DOTALL
)
VARIABLE = re.compile(r"([A-Za-z]|" + "|".join(GREEK) + r")(?:_(\w{1,2}|hat|[{(][\w+-]+[)}]))?")


class Part(NamedTuple):
    """LaTeX for the tokens up to `end`; `sure` if prose would not have them."""

    tex: str
    end: int
    sure: bool = False


class Formula:
    """A reader of one text: every method takes the index of a token and returns a part, or None."""

    def __init__(self, text: str, *, display: bool = False):
        self.display = display
        found = list(TOKEN.finditer(text))
        self.tokens = [match.group() for match in found]
        self.spans = [match.span() for match in found]

    def _token(self, i: int) -> str:
        return self.tokens[i] if i < len(self.tokens) else ""

    def _touches(self, i: int) -> bool:
        """Whether there is no space in front of token i."""
        return 0 < i < len(self.tokens) and self.spans[i][0] == self.spans[i - 1][1]

    def sequence(self, i: int, depth: int) -> Part | None:
        """As many operands as follow each other, by juxtaposition or with signs in between."""
        first = self._operand(i, depth, after_sign=self._token(i + 1) == "=")
        if first is None and self._token(i) == "-":
            attached = self._operand(i + 1, depth) if self._touches(i + 1) else None
            first = attached and Part("-" + attached.tex, attached.end, attached.sure)
        while first:
            following = self._signed(first, depth) or self._juxtaposed(first, depth)
            if following is None:
                break
            first = following
        return first

    def _signed(self, left: Part, depth: int) -> Part | None:
        sign, i = self._token(left.end), left.end + 1
        if sign in SEPARATORS and (depth or self.display or sign == "given"):
            tex = SEPARATORS[sign]
        elif sign in SIGNS and self._touches(i) == self._touches(i - 1):
            tex = SIGNS[sign]
        else:
            return None
        right = self._operand(i, depth, after_sign=True)
        if right is None and self._token(i) in "+-":
            right = self._operand(i + 1, depth, after_sign=True)
            right = right and Part("-" + right.tex, right.end, right.sure)
        if right is None:
            return None
        relation = sign in RELATIONS
        if relation and not depth and not self.display:
            tex = BREAK + tex
        sure = left.sure or right.sure or relation
        return Part(left.tex + tex + right.tex, right.end, sure)

    def _juxtaposed(self, left: Part, depth: int) -> Part | None:
        i = left.end
        dot = self._token(i) == "." and self._touches(i) and self._touches(i + 1)
        last = self._token(i - 1)
        named = last in WORDS or "_" in last
        right = self._operand(i + dot, depth, after_sign=named)
        if right is None or (self._token(i + dot)[0].isdigit() and not depth):
            return None
        tex = left.tex + (r"\cdot " if dot else r"\," if right.tex[0] != "(" else "") + right.tex
        return Part(tex, right.end, left.sure or right.sure)

    def _operand(self, i: int, depth: int, after_sign: bool = False) -> Part | None:
        """A number, a variable, brackets, or an operator with its operand; and its powers."""
        found = self._simple(i, depth, after_sign)
        while found:
            tex, end, sure = found
            token = self._token(end)
            if token == "'" and self._touches(end) and not self._is_possessive(end):
                found = Part(tex + "'", end + 1, sure)
            elif token[:1] == "_" and self._touches(end) and 2 <= len(token) <= 3:  # y'_i
                found = Part(f"{tex}_{{{token[1:]}}}", end + 1, True)
            elif token in ("*", r"\*") and self._touches(end) and not self._glues(end + 1):
                found = Part(tex + "^*", end + 1, sure)
            elif token == "^":
                minus = self._token(end + 1) == "-"
                power = self._simple(end + 1 + minus, depth + 1, True)
                if power is None:
                    return None
                exponent = power.tex[1:-1] if power.tex[0] == "(" else power.tex
                found = Part(f"{tex}^{{{'-' * minus}{exponent}}}", power.end, True)
            else:
                break
        return found

    def _is_possessive(self, i: int) -> bool:
        return self._touches(i + 1) and self._token(i + 1)[0].isalnum()

    def _glues(self, i: int) -> bool:
        """Whether an asterisk in front of token i is a product or a shape's."""
        return self._touches(i) and self._token(i)[0] not in ")],.;:'"

    def _simple(self, i: int, depth: int, after_sign: bool) -> Part | None:
        token = self._token(i)
        base, _, index = token.partition("_")
        if token.startswith("(Laplacian"):
            return Part(r"\Delta\varphi", i + 1, True)
        if token in BRACKETS:
            return self._brackets(i, depth)
        if token and token[0].isdigit():
            return Part(token, i + 1) if re.fullmatch(r"[\d.]+", token) else None
        if token == "...":
            return Part(r"\dots ", i + 1)
        if token == "." and depth and self._token(i + 1) in (",", ")"):
            return Part(r"\cdot", i + 1)
        if token in FENCES and self._token(i + 1) == "(":
            inside = self._brackets(i + 1, depth)
            left, right = FENCES[token]
            return inside and Part(left + inside.tex[1:-1] + right, inside.end, True)
        if base in OPERATORS:
            index = rf"\text{{{index}}}" if len(index) > 2 else index
            operator = OPERATORS[base] + (f"_{{{index}}}" if index else "")
            applied = self._applied(operator, i, depth)
            if applied or token not in WORDS:
                return applied or (self._variable(token, i) if VARIABLE.fullmatch(token) else None)
        variable = VARIABLE.fullmatch(token)
        if token in DIFFERENTIALS or (variable and (depth or token not in ("a", "A"))):
            return self._variable(token, i)
        named = token in WORDS or re.fullmatch(r"[a-z]{2,}(_[a-z]+)+", token)
        if self.display or (named and (depth or after_sign)):
            return self._words(i)
        return None

    def _brackets(self, i: int, depth: int) -> Part | None:
        left = self._token(i)
        inside = self.sequence(i + 1, depth + 1)
        if inside is None or self._token(inside.end) != BRACKETS[left]:
            return None
        return Part(left + inside.tex + BRACKETS[left], inside.end + 1, inside.sure)

    def _applied(self, operator: str, i: int, depth: int) -> Part | None:
        operand = self._operand(i + 1, depth)
        if operand is None or (self._token(i + 1)[0].isdigit() and not depth):
            return None
        space = "" if operand.tex[0] in "([" or operator.endswith(" ") else r"\,"
        return Part(operator + space + operand.tex, operand.end, True)

    def _variable(self, token: str, i: int) -> Part:
        """A letter, with its index and its argument, as in f(y)."""
        match = VARIABLE.fullmatch(token)
        if match is None:
            return Part(rf"d{token[1]}", i + 1)
        letter, index = match.groups()
        tex = GREEK.get(letter, letter)
        if index == "hat":
            tex = rf"\hat{{{tex}}}"
        elif index:
            tex += f"_{{{index.strip('{}()')}}}"
        call = self._token(i + 1) == "(" and self._touches(i + 1)
        arguments = self._brackets(i + 1, 1) if call else None
        if arguments:
            return Part(tex + arguments.tex, arguments.end, True)
        return Part(tex, i + 1, letter in GREEK or bool(index))

    def _words(self, i: int) -> Part | None:
        """Words as text: in a display all that no table has, in prose the name of an argument."""
        end = i
        while re.fullmatch(r"[a-z_]{2,}", self._token(end)) and not self._is_mathematical(end):
            end += 1
            if not self.display:
                break
        text = " ".join(self.tokens[i:end]).replace("_", r"}\_\text{")
        return Part(rf"\text{{{text}}}", end) if end > i else None

    def _is_mathematical(self, i: int) -> bool:
        base = self._token(i).partition("_")[0]
        named = base in GREEK or base in OPERATORS or base in FENCES or base == "given"
        return named and base not in WORDS


def display(line: str) -> str | None:
    """An indented line as LaTeX, or None if the tables cannot translate it."""
    line = line.strip()
    ending = line[-1] if line[-1] in ",.;" else ""
    parts = re.split(r" {3,}", line.removesuffix(ending).rstrip())
    translated = []
    for part in parts:
        comma = "," if part.endswith(",") else ""
        reader = Formula(part.removesuffix(","), display=True)
        found = reader.sequence(0, 0)
        if found is None or found.end != len(reader.tokens):
            return None
        translated.append(found.tex + comma)
    return r" \qquad ".join(translated) + ending


def prose(lines: list[str]) -> list[str]:
    """The lines of an RST docstring, with formulas wherever there is neither code nor a name."""
    out: list[str] = []
    paragraph: list[str] = []
    block = None  # the indentation of a directive or of what announces a literal block
    in_doctest = False
    for line in [*lines, ""]:
        text = line.strip()
        indentation = len(line) - len(line.lstrip())
        if block is not None and text and indentation <= block:
            block = None
        in_doctest = bool(text) and (in_doctest or text.startswith(">>>"))
        if block is None and (text.startswith(".. ") or text.endswith("::")):
            block = indentation
        is_prose = text and not in_doctest and block is None
        if paragraph and (not is_prose or text.startswith(":")):
            out += _paragraph("\n".join(paragraph)).split("\n")
            paragraph = []
        (paragraph if is_prose else out).append(line)
    return out[:-1]


def _paragraph(text: str) -> str:
    name = re.match(r"\s*:\w+(?: [^:`]*)?: |", text)
    start = name.end() if name else 0
    parts = text[start:].split("`")
    parts[::2] = [inline(part) for part in parts[::2]]
    return text[:start] + "`".join(parts)


def inline(text: str) -> str:
    """Prose with its formulas as :math: roles; line breaks stay where they are."""
    reader = Formula(text)
    out, copied, i = "", 0, 0
    while i < len(reader.tokens):
        found = reader.sequence(i, 0) if _may_start(text, reader.spans[i][0]) else None
        if found is None or not found.sure or not _may_end(text, reader.spans[found.end - 1][1]):
            i += 1
            continue
        start, end = reader.spans[i][0], reader.spans[found.end - 1][1]
        # A formula that goes over the end of a line takes the break along.
        rest = re.search(r"\n *", text[start:end])
        breakable = BREAK if found.end - i > 16 else "\0"
        roles = [part.replace(BREAK, "").strip() for part in found.tex.split(breakable)]
        out += text[copied:start] + " ".join(f":math:`{tex}`" for tex in roles)
        if rest:
            tail = text[end : end + 1]
            follows = tail if tail in (".", ",", ";", ":", ")", "]") else ""
            out, end = out + follows + rest.group(), end + len(follows)
            while text[end : end + 1] == " ":
                end += 1
        copied, i = end, found.end
        while i < len(reader.tokens) and reader.spans[i][0] < copied:
            i += 1
    return out + text[copied:]


def _may_start(text: str, start: int) -> bool:
    return start == 0 or text[start - 1] in " \n(["


def _may_end(text: str, end: int) -> bool:
    return end == len(text) or text[end] in " \n)]}.,;:'?!\"-"
