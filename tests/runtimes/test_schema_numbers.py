"""Numbers of schemas that llguidance cannot follow, in a file of their own and within Lark."""

from __future__ import annotations

import pytest

from edgeglm.runtimes.core.schema_numbers import SchemaNumberError, check_numbers


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ('{"type":"integer","minimum":-9223372036854775808,"maximum":-9223372036854775808}', "maximum -92"),
        ('\n {"allOf":[{"minimum":-1e301},{"exclusiveMaximum":-1e300}]}', "exclusiveMaximum -1e"),
        ('{"maximum":-1e300,"maximum":1}', "maximum"),  # whichever of two counts
        (f'{{"maximum":-1{"0" * 5000}}}', "maximum -inf"),
        ('{"properties":{"id":{"const":9007199254740993}}}', "9007199254740993 in const"),
        ('{"enum":["a",{"b":[1,-18446744073709551615]}]}', "-18446744073709551615 in enum"),
    ],
)
def test_a_number_that_cannot_be_followed_is_named(schema: str, named: str) -> None:
    for text, is_schema in ((schema, True), (f'start: "a" | x\nx: %json {schema} "b"', False), (schema, False)):
        with pytest.raises(SchemaNumberError, match=named):
            check_numbers(text, is_schema=is_schema)


@pytest.mark.parametrize(
    "schema",
    [
        '{"type":"integer","minimum":0,"maximum":9223372036854775807}',
        '{"const":9007199254740992,"default":9007199254740993}',
        '{"enum":[true,null,1e300,-0.1,"9007199254740993"]}',
        '{"properties":{"maximum":{"const":1}}}',
        '{"description":"%json {\\"maximum\\":-1e300}"}',
        "{",
        "[" * 100_000,
        "",
    ],
)
def test_others_and_what_is_no_schema_pass(schema: str) -> None:
    check_numbers(schema, is_schema=True)
    check_numbers(f"start: %json {schema}", is_schema=False)
