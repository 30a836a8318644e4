"""Which numbers a plan's values may be."""

from nnunet_topomae.config.checked import Rule

ABOVE_0 = Rule(lambda value: value > 0, "above 0")
AT_LEAST_0 = Rule(lambda value: value >= 0, "at least 0")
AT_LEAST_1 = Rule(lambda value: value >= 1, "at least 1")
UNIT = Rule(lambda value: 0 <= value <= 1, "0 to 1")
AXES = Rule(lambda values: set(values) <= {0, 1, 2} and len(set(values)) == len(values), "distinct axes out of 0, 1, 2")
FACTORS = Rule(
    lambda values: len(values) == 2 and 0.25 <= values[0] <= values[1] <= 4,
    "two factors from 0.25 to 4, the lower first",
)
FOUR = Rule(lambda values: len(values) == 4 and min(values) > 0, "four positive numbers")
