"""The formulas of docstrings as LaTeX, and what stays prose."""

import ast
import re
from pathlib import Path

import pytest

from docs import formulas

PACKAGE = Path(__file__).parent.parent / "numpyro_neb"


@pytest.mark.parametrize(
    ("line", "tex"),
    [
        ("x_hat(y) = y - sigma^2 grad phi(y),", r"\hat{x}(y)=y-\sigma^{2}\,\nabla \varphi(y),"),
        ("norm(v)^2 / 2", r"{\lVert v\rVert}^{2}/2"),
        ("sum_j log sum_i w_i N(y_j; m_i, sigma_j^2 I)",
         r"\sum_{j}\,\log \sum_{i}\,w_{i}\,N(y_{j};\;m_{i},\;\sigma_{j}^{2}\,I)"),
        ("Cov(X given y)^(1/2) eps,    eps ~ N(0, I),",
         r"\operatorname{Cov}(X\mid y)^{1/2}\,\varepsilon, \qquad \varepsilon\sim N(0,\;I),"),
        ("E[X given Y=y]", r"\operatorname{E}[X\mid Y=y]"),
        ("(C_i + sigma^2 I)^-1 (y - m_i)", r"(C_{i}+\sigma^{2}\,I)^{-1}(y-m_{i})"),
        ("y' = y - eta grad phi(y) + sqrt(2 eta) eps",
         r"y'=y-\eta\,\nabla \varphi(y)+\sqrt{2\,\eta}\,\varepsilon"),
        ("E (E_n - E_{n-1})^2 / Var E",
         r"\operatorname{E}(E_{n}-E_{n-1})^{2}/\operatorname{Var}\,E"),
        ("P(X_j <= x given X_1 = x_1, ..., X_(j-1) = x_(j-1))",
         r"P(X_{j}\leq x\mid X_{1}=x_{1},\;\dots ,\;X_{j-1}=x_{j-1})"),
        ("E_data grad phi(Y)", r"\operatorname{E}_{\text{data}}\,\nabla \varphi(Y)"),
        ("d the number of coordinates", r"d\,\text{the number of coordinates}"),
        ("denoising_weight * phi(y)", r"\text{denoising}\_\text{weight}\cdot \varphi(y)"),
    ],
)  # fmt: skip
def test_a_displayed_formula(line, tex):
    assert formulas.display(f"    {line}") == tex


CODE = ["{x: y}", "f(y", "f(y))", "y @ x", "x = ", "'gaussian'", "a[0] %"]


@pytest.mark.parametrize("line", CODE)
def test_what_the_tables_cannot_do_stays_code(line):
    assert formulas.display(f"    {line}") is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The jump y - sigma^2 grad phi(y), of shape (n, d).",
         r"The jump :math:`y-\sigma^{2}\,\nabla \varphi(y)`, of shape (n, d)."),
        ("So (y_i, y'_i) and y'_i", r"So :math:`(y_{i},\;y'_{i})` and :math:`y'_{i}`"),
        ("Cov(X given Y=y) = sigma^2 (I - sigma^2 Hess phi(y))",
         r":math:`\operatorname{Cov}(X\mid Y=y)` "
         r":math:`=\sigma^{2}(I-\sigma^{2}\,\operatorname{Hess}\,\varphi(y))`"),
        ("with b = 0.", "with :math:`b=0`."),
        ("the sigma-weighted mean, phi's minimum",
         r"the :math:`\sigma`-weighted mean, :math:`\varphi`'s minimum"),
        ("Y = X + N(0, sigma^2\n    I), the noisy",
         ":math:`Y=X+N(0,\\;\\sigma^{2}\\,I)`,\n    the noisy"),
        (r"friction \* step_size", r"friction \* step_size"),
        (r"at y\* the jump x_hat(y\*) = y\*:", r"at y\* the jump :math:`\hat{x}(y^*)=y^*`:"),
        ("A step of 10,000 sigma", "A step of 10,000 :math:`\\sigma`"),
    ],
)  # fmt: skip
def test_formulas_in_prose(text, found):
    assert formulas.inline(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "A walk of 8 x 8 pixels, a y and an x; I log a sum, and exp is a word.",
        r"An array of shape (\*batch, \*event_shape), or (n,).",
        "Install numpyro_neb, call fit(energy, x, key) or neb.sigma.of and mu_prior_scale.",
        "x, y, and d of them: the mean/sd of a - b.",
    ],
)
def test_prose_stays_prose(text):
    assert formulas.inline(text) == text


def test_code_and_names_stay_as_they_are():
    lines = [
        "The energy phi, `sigma^2` and `x", "sigma` of it.", "",
        ":raises ValueError: If sigma < 0.", ":param sigma: In units of sigma.", "",
        ">>> sigma = 0.3", "sigma", "", "See::", "", "    sigma^2", "", ".. math::", "",
        r"    \sigma", "", "Then phi.",
    ]  # fmt: skip
    changed = {
        0: r"The energy :math:`\varphi`, `sigma^2` and `x",
        3: r":raises ValueError: If :math:`\sigma<0`.",
        4: r":param sigma: In units of :math:`\sigma`.",
        17: r"Then :math:`\varphi`.",
    }
    assert formulas.prose(lines) == [changed.get(i, line) for i, line in enumerate(lines)]


def test_the_displayed_formulas_of_the_package_are_translated():
    lines = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                docstring = ast.get_docstring(node) or ""
                for block in re.findall(r"(?<=\S\n\n)(?: {4}(?!>>>).*\n)+(?=\n)", docstring):
                    lines += block.splitlines()
    code = [line for line in lines if formulas.display(line) is None]
    assert len(lines) >= 10
    assert len(code) <= len(lines) / 10, code
