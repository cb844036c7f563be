"""OpenMM's expression language: every meaning is checked against OpenMM itself."""

import math
import pickle

import openmm
import pytest
import torch

from hpc_molgen.dynamics.custom.expressions import FUNCTIONS, parse
from hpc_molgen.dynamics.custom.tape import bind, evaluate
from hpc_molgen.errors import InputError

POINT = {"x": 0.7, "y": -1.3, "z": 0.4}


def openmm_value(expression: str, point: dict[str, float]) -> tuple[float, list[float]]:
    system = openmm.System()
    system.addParticle(1.0)
    force = openmm.CustomExternalForce(expression)
    force.addParticle(0, [])
    system.addForce(force)
    context = openmm.Context(system, openmm.VerletIntegrator(1e-3), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions([[point[name] for name in "xyz"]])
    state = context.getState(getEnergy=True, getForces=True)
    return state.getPotentialEnergy()._value, [-component for component in state.getForces()[0]._value]


def torch_value(expression: str, point: dict[str, float]) -> tuple[float, list[float]]:
    values = {name: torch.tensor([value], dtype=torch.float64, requires_grad=True) for name, value in point.items()}
    result = evaluate(parse(expression), values)
    if isinstance(result, float):
        return result, [0.0] * 3
    if result.requires_grad:
        result.sum().backward()
    return result.item(), [0.0 if values[name].grad is None else values[name].grad.item() for name in "xyz"]


@pytest.mark.parametrize(
    "expression",
    [
        *("-x^2", "2^3^2", "2^-x", "-2^2", "--x", "2--x", "2*-x", "x^-2", "-x^2^2", "2^-x^2", "-x^-y", "2^-2^2*x", "- x"),
        *("x/y/z", "x-y-z", "-x-y", "x-(y-z)", "x/(y/z)", "1-2/x-y*3/z+4", "2*x/3*y", "y-x+2*z-5", "-x/2"),
        *("a*b; a=x+1; b=y", "a*x; a=b+1; b=y", "a; a=x; a=y", "a*x;a = y;", "x; b=unknown", "x;;a=2", "a; a=a*2; a=y"),
        *("a'; a'=x", "x_1;x_1=x", "x*\n2", "x\t+1", "1e-3*x", "1E3*x", ".5*x", "5.*x", "1e+3*x", "x*3; x=y"),
        *("step(x)", "step(y)", "step(x-0.7)", "step(x-0.7)*x", "delta(x-0.7)", "delta(x)", "x*delta(y+1.3)"),
        *("select(y,x,z)", "select(x-0.7,x,z)", "x*select(x-0.7,2,y)", "select(1,x,y)", "select(0,x,y)"),
        *("min(x,y)", "max(x,y)", "min(x-0.7,2*(x-0.7))", "max(x-0.7,2*(x-0.7))", "abs(x-0.7)", "abs(y)", "min(x,0.1)"),
        *("y^3", "y^-3", "x^0.5", "x^z", "x^12-x^6", "x^0", "(y*z)^2", "2^x", "square(y)", "cube(y)", "recip(y)"),
        *("atan2(x,y)", "atan2(y,x)", "atan2(y,1)", "floor(y)*x", "ceil(y)*x", "erfc(x*z)/x", "3*4-2^0.5", "x*0"),
        "select(step(x-1), log(x-1), 0) + select(z, sqrt(z), 1/z)",
        "138.9*q*q/r*(1-exp(-r)); q=0.4; r=sqrt(x^2+y^2+z^2)",
        *(f"{name}(x*z)" for name, arity in FUNCTIONS.items() if arity == 1),
    ],
)
def test_value_and_derivative_are_openmms(expression: str) -> None:
    energy, gradient = torch_value(expression, POINT)
    expected, expected_gradient = openmm_value(expression, POINT)
    assert energy == pytest.approx(expected, rel=1e-14, abs=1e-14)
    assert gradient == pytest.approx(expected_gradient, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("expression", "problem", "place"),
    [
        ("x*(y", "missing ')'", 5),
        ("x)", "unexpected ')'", 2),
        ("x+", "unexpected end", 3),
        ("+x", "unexpected '+'", 1),
        ("2x", "unexpected 'x'", 2),
        ("x y", "unexpected 'y'", 3),
        ("x<y", "unexpected character '<'", 2),
        ("x; a", "expected a definition", 3),
        ("x*foo(y)", "unknown function 'foo' (known: abs", 3),
        ("min(x)", "min takes 2 argument(s), not 1", 1),
        ("select(x,y)", "select takes 3", 1),
        ("x*pi", "unknown variable 'pi' (known: x, y, z)", 3),
        ("a*x; a=b; b=c+1", "unknown variable 'c'", 13),
        ("a*x; b=y; a=b", "unknown variable 'b'", 13),
        ("", "unexpected end", 1),
        ("__import__(x)", "unknown function '__import__'", 1),
        ("x.__class__", "unknown variable 'x.__class__'", 1),
        ("'x'", "unexpected character", 1),
        ("(" * 5000 + "x" + ")" * 5000, "too many nested operations", None),
    ],
)
def test_bad_expressions_are_refused_with_their_place(expression: str, problem: str, place: int | None) -> None:
    with pytest.raises(InputError) as caught:
        parse(expression).require_known(POINT)
    message = str(caught.value)
    assert problem in message
    assert expression in message
    if place is not None:
        assert f"at character {place} " in message
        assert message.splitlines()[-1] == " " * (place + 1) + "^"
    with pytest.raises(openmm.OpenMMException):  # OpenMM refuses it too
        openmm_value(expression if place is not None else "(", POINT)


def test_what_select_leaves_out_gives_no_nan() -> None:
    x = torch.tensor([-1.0, 0.0, 0.5, 1000.0], requires_grad=True)
    text = "select(step(x-0.1), log(x)+a, 2*x) + select(step(5-x), exp(x*x), 0) + select(x, 1/x+select(step(x),x^-0.5,0), x)"
    value = evaluate(parse(text + "; a=sqrt(x-0.1)"), {"x": x})
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(x.grad).all()
    assert x.grad[1] == pytest.approx(2 + 0 + 1)


def test_select_by_a_parameter_gives_no_nan() -> None:
    weights = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    expression = parse("select(w, log(w)*x + log(w*x), x) + select(w, select(step(x-w), sqrt(x-w)/w, x/w), x)")
    tape = bind(expression, {"w": weights}, {}, torch.float64, torch.device("cpu"))
    x = torch.tensor([[0.0, 2.0], [1.0, 3.0]], dtype=torch.float64, requires_grad=True)
    value = tape({"x": x})
    (gradient,) = torch.autograd.grad(value.sum(), x)
    log = math.log(2)
    assert value.flatten().tolist() == pytest.approx([0.0, 4.0, 2 * log + 0.5, 3 * log + math.log(6) + 0.5])
    assert gradient.flatten().tolist() == pytest.approx([2.0, 2.0, log + 1 + 0.5, log + 1 / 3 + 0.25])


def test_constants_are_computed_once_and_equal_parts_too() -> None:
    weights = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    expression = parse("w*sin(w)*exp(k)*x + w^2*cos(x)/cos(x) + step(3-k)*x^n")
    tape = bind(expression, {"w": weights, "k": 2.0, "n": 4.0}, {}, torch.float32, torch.device("cpu"))
    assert len(tape.steps) == 8  # one cos, five products and quotients, two sums: sin, exp, step and pow are gone
    x = torch.linspace(0.0, 1.0, 5)
    expected = (weights * weights.sin() * math.exp(2)).float() * x + (weights**2).float() + x**4
    assert torch.allclose(tape({"x": x}), expected)


def test_numbers_give_a_number_and_trees_pickle() -> None:
    expression = pickle.loads(pickle.dumps(parse("a^2+f(b); a=b+1", {"f": 1})))
    assert expression.variables == {"b"}

    class Twice:
        def build(self, _dtype, _device):
            return lambda value: 2 * value

    assert evaluate(expression, {"b": 3}, {"f": Twice()}) == 22.0
    with pytest.raises(InputError, match="unknown variable 'b'"):
        evaluate(expression, {}, {"f": Twice()})


def test_long_sums_need_no_recursion() -> None:
    text = "+".join(f"{k}*x^{k % 7}" for k in range(3000))
    value = evaluate(parse(text), {"x": torch.tensor([0.5], dtype=torch.float64)})
    assert value.item() == pytest.approx(sum(k * 0.5 ** (k % 7) for k in range(3000)))
