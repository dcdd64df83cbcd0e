"""Questions about nothing in particular, written for unchanged_answers.py: no text that anything is trained on.

`CLOZE` are sentences without their last word, with the word; `SUMS` are small sums, each after four that are done, with
their results; `OPENINGS` are beginnings of texts of several kinds and languages.
"""

from __future__ import annotations

_CLOZE = """
The capital of Japan is | Tokyo
The capital of Italy is | Rome
The capital of Egypt is | Cairo
The capital of Spain is | Madrid
The capital of Russia is | Moscow
The largest planet in the solar system is | Jupiter
The planet closest to the Sun is | Mercury
The Earth goes around the | Sun
The chemical symbol H stands for | hydrogen
Water is made of hydrogen and | oxygen
Plants take in carbon | dioxide
Leaves are green because they contain | chlorophyll
The blood is pumped through the body by the | heart
We breathe with our | lungs
The largest organ of the human body is the | skin
Spiders have eight | legs
A triangle has three | sides
The opposite of hot is | cold
The opposite of early is | late
The opposite of up is | down
The opposite of rich is | poor
Monday comes before | Tuesday
The month after June is | July
The last month of the year is | December
There are seven days in a | week
There are sixty seconds in a | minute
There are a hundred years in a | century
Romeo and | Juliet
The play Hamlet was written by William | Shakespeare
The theory of relativity was developed by Albert | Einstein
The theory of evolution was proposed by Charles | Darwin
The first man on the Moon was Neil | Armstrong
The telephone was patented by Alexander Graham | Bell
The Mona Lisa was painted by Leonardo da | Vinci
The Eiffel Tower stands in | Paris
The Great Wall is in | China
Mount Everest is the highest mountain in the | world
The longest river in Africa is the | Nile
The Sahara is a | desert
Brazil is a country in South | America
London lies on the river | Thames
Bees make | honey
Cows give | milk
Hens lay | eggs
A young cat is called a | kitten
A young dog is called a | puppy
Birds build their nests in | trees
Fish live in | water
Penguins cannot | fly
Sharks and whales live in the | ocean
In winter the pond was covered with | ice
It was raining, so she opened her | umbrella
It was so dark that he switched on the | light
He was thirsty, so he drank a glass of | water
She was tired and went to | bed
He put the letter into an envelope and added a | stamp
She unlocked the door with her | key
The baby began to | cry
He tied his shoes and left the | house
The teacher wrote the word on the | board
The doctor listened to her | heart
The judge sent him to | prison
The farmer milked his | cows
The pilot landed the | plane
The orchestra began to | play
The audience clapped their | hands
She blew out the candles on her birthday | cake
He brushed his teeth before going to | bed
They sat down at the table to eat | dinner
The cat chased the | mouse
The ship sank to the bottom of the | sea
The sun rises in the | east
The sun sets in the | west
A compass needle points | north
Lightning is followed by | thunder
Where there is smoke, there is | fire
Better late than | never
Actions speak louder than | words
All that glitters is not | gold
Practice makes | perfect
The early bird catches the | worm
Two wrongs don't make a | right
Once upon a | time
They lived happily ever | after
Ladies and | gentlemen
The flag of the United States has fifty | stars
The Second World War ended in | 1945
Computers store numbers in zeros and | ones
A program that translates source code is called a | compiler
The brackets at the end of a function call are called | parentheses
In Python, a function is defined with the keyword | def
The World Wide | Web
For more information, please visit our | website
Thank you very | much
I look forward to hearing from | you
La capitale de la France est | Paris
Le contraire de grand est | petit
Die Hauptstadt von Deutschland ist | Berlin
Das Gegenteil von kalt ist | warm
La capital de España es | Madrid
"""

_SUMS = """
17 + 5, 8 + 7, 23 + 14, 36 + 9, 50 + 25, 41 + 38, 12 + 19, 64 + 6, 100 + 250, 7 + 93
33 + 33, 28 + 55, 3 + 4, 71 + 18, 46 + 46
20 - 6, 15 - 9, 48 - 13, 100 - 1, 73 - 30, 62 - 27, 9 - 4, 81 - 18, 55 - 55, 90 - 45, 34 - 8
120 - 60, 17 - 16, 66 - 22, 40 - 11
3 * 4, 6 * 7, 9 * 9, 12 * 5, 8 * 11, 7 * 3, 25 * 4, 10 * 37, 2 * 48, 5 * 15, 13 * 3, 6 * 6, 1 * 99, 0 * 12, 20 * 30
12 / 4, 63 / 9, 100 / 10, 48 / 6, 81 / 3, 14 / 7, 56 / 8, 90 / 5
36 / 36, 250 / 25, 72 / 12, 44 / 2, 18 / 3, 1000 / 100, 45 / 15
"""

_OPENINGS = """
The history of chocolate begins
Photosynthesis is the process by which
The immune system protects the body
In economics, inflation means
A volcano erupts when
Glaciers form where
Most bats find their way by
The Roman Empire reached its
The printing press changed
Vaccines work by
Black holes are regions of
The difference between weather and climate is
Earthquakes happen because
A healthy breakfast should
The main advantage of electric cars is
The door creaked open, and
She had never seen the ocean before, but
"Where were you last night?" he
The old house at the end of the lane
When the music stopped, everyone
Long ago, in a kingdom by the
He counted the coins again and
It was the first day of school, and
The letter arrived on a Tuesday,
Nobody believed the boy when
My grandmother used to say that
The detective lit his pipe and
The dragon looked at the knight and
User: What is a good name for a dog?
Assistant:
User: How do I boil an egg?
Assistant:
User: Can you explain gravity to a child?
Assistant:
User: Write a short poem about autumn.
Assistant:
User: I can't sleep at night. Any advice?
Assistant:
User: What does HTTP stand for?
Assistant:
Question: Which is heavier, a kilogram of feathers or a kilogram of iron?
Answer:
Question: Who wrote Pride and Prejudice?
Answer:
Question: How many legs does an insect have?
Answer:
Question: Why is the sky blue?
Answer:
def is_prime(n):
def reverse_string(s):
def factorial(n: int) -> int:
import numpy as np\\n\\nx =
for i in range(10):
class Stack:\\n    def __init__(self):
with open("data.txt") as f:
try:\\n    value = int(text)\\nexcept
SELECT name, age FROM
CREATE TABLE orders (
#include <stdio.h>\\n\\nint main(
function add(a, b) {
const fs = require(
git commit -m
$ ls -la
<html>\\n<head>\\n<title>
<ul>\\n  <li>Apples</li>
{"name": "Alice", "age":
- name: Checkout\\n  uses:
body {\\n  margin:
# Getting started\\n\\nTo install
## Contributing\\n\\nPull requests are
TODO: fix the
Shares of the company fell on Monday after
The president said on Wednesday that
Police are looking for
The home team won
Scientists have discovered a new
The city council voted to
Heavy snow is expected in
Dear Sir or Madam,
Dear team,\\n\\nPlease note that
Hi Anna,\\n\\nThank you for
Kind regards,
This Agreement is made between
The tenant shall pay
All rights reserved. No part of this
The above copyright notice and
Preheat the oven to
Add the onions and
Ingredients:\\n- 2 eggs\\n-
Step 1: Turn off the
Let x be a real number such that
The area of a circle is
The derivative of x^2 is
Theorem. Every even number
1, 2, 3, 4, 5,
2, 4, 8, 16,
Roses are red,
Il était une fois
Le chat dort sur
Bonjour, je voudrais
La Révolution française commence en
Es war einmal
Der Zug fährt um
Ich möchte gern
Die Katze sitzt auf
Había una vez
Buenos días, me llamo
La ciudad está cerca de
C'era una volta
O Brasil é um
"""


_BEFORE = "2 + 2 = 4\n6 - 1 = 5\n5 * 3 = 15\n8 / 2 = 4\n"  # without them small models do not see that a sum is asked


def _openings(lines: str) -> tuple[str, ...]:
    """One a line; a line break inside one is written as backslash n, or stands before its `Assistant:` or `Answer:`."""
    joined = lines.strip().replace("\nAssistant:", "\\nAssistant:").replace("\nAnswer:", "\\nAnswer:")
    return tuple(line.replace("\\n", "\n") for line in joined.split("\n"))


def _result(asked: str) -> str:
    """What a sum comes to; all divide evenly."""
    left, sign, right = asked.split()
    a, b = int(left), int(right)
    return str({"+": a + b, "-": a - b, "*": a * b, "/": a // max(1, b)}[sign])


CLOZE = tuple(tuple(line.split(" | ")) for line in _CLOZE.strip().splitlines())
SUMS = tuple((f"{_BEFORE}{s} =", _result(s)) for line in _SUMS.strip().splitlines() for s in line.split(", "))
OPENINGS = _openings(_OPENINGS)
