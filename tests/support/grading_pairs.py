r"""Pairs of an answer and a reference, as a person grades them, by kind, each with the reports that it comes from.

`BOXED`: what stands in the box. `RESPONSES`: whole responses. In both a pair is (answer, reference).
"""

from __future__ import annotations

from dataclasses import dataclass

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Kind:
    """Pairs of one kind."""

    source: str
    right: tuple[Pair, ...]
    wrong: tuple[Pair, ...]


BOXED = {
    "copies that lost their commands": Kind(
        "verl's copy of MATH against DeepScaleR's: 1,155 of 7,474 references are written differently",
        right=(
            (r"\begin{pmatrix} 6 \\ -17 \end{pmatrix}", r"\begin{pmatrix}6\-17\end{pmatrix}"),
            (r"\begin{pmatrix} 4/7 \\ 5/7 \end{pmatrix}", r"\begin{pmatrix}4/7\5/7\end{pmatrix}"),
            (r"2, 3, \text{ and } 4", "2,3,{}4"), (r"6, 8\text{, and }10", "6,8{,}10"),
            (r"-2 \text{ or } -12", "-2{or}-12"), (r"\text{A5}_{11}", "{A5}_{11}"),
            (r"\text{October 30}", "{October30}"), (r"\text{A, D, F}", "{A,D,F}"),
            (r"\text{(E)},", "{(E)},"), ("43_5.", "43_5"),
        ),
        wrong=(
            (r"\begin{pmatrix} 6 \\ 17 \end{pmatrix}", r"\begin{pmatrix}6\-17\end{pmatrix}"),
            (r"\begin{pmatrix} 6-17 \\ 0 \end{pmatrix}", r"\begin{pmatrix}6\-17\end{pmatrix}"),
            (r"2, 3, \text{ and } 5", "2,3,{}4"), (r"6, 10", "6,8{,}10"), ("-2", "-2{or}-12"),
            (r"\text{A6}_{11}", "{A5}_{11}"), (r"\text{October 31}", "{October30}"), (r"\text{A, D}", "{A,D,F}"),
            ("8{,}100", "8,10"),
        ),
    ),
    "quantities in several units": Kind(
        "made for this table: what people write for times, lengths and angles",
        right=(
            ("2 hours 30 minutes", "150 minutes"), ("2 hours and 30 minutes", "2.5 hours"), ("1 h 5 min 3 s", "3903 s"),
            ("5 ft 6 in", "66 inches"), ("5'6\"", "5.5 feet"), ("5'6''", "66 inches"), ("2 m 30 cm", "2.3 m"),
            ("2 weeks and 3 days", "17 days"), (r"3\text{ lb }8\text{ oz}", r"3.5\text{ lb}"), ("2 hrs 30 min", "2.5"),
            ("30^\\circ 15'", r"30.25^\circ"), ("5 dollars and 30 cents", r"\$5.30"),
        ),
        wrong=(
            ("2 hours 30 minutes", "2.3 hours"), ("2 hours 30 minutes", "32"), ("5 ft 6 in", "5.6 feet"),
            ("5'6\"", "5.6 feet"), ("2 m 30 s", "2.3 m"), ("5 apples 3 pears", "8"), ("30 min 2 h", "150 min"),
            ("2 hours 30 minutes", "2 hours"), ("2 days 30 minutes", "2.5 days"), ("30^\\circ 15'", r"30.15^\circ"),
            ("5 dollars and 30 cents", "€5.30"), ("3 pm 4 am", "7"),
        ),
    ),
    "capital letters": Kind(
        "OlympiadBench (n/2 and N/2); latex2sympy2_extended takes all letters for small ones, and R^2 - r^2 for 0",
        right=(
            (r"\pi(R^2-r^2)", r"\pi R^2 - \pi r^2"), ("(R+r)(R-r)", "R^2-r^2"), ("n=5", "N=5"), ("E=mc^2", "E = m c^2"),
            (r"\frac{N}{2}", "N/2"), ("x^2+c", "x^2 + C"), ("AB+BC", "BC+AB"),
        ),
        wrong=(
            (r"\frac{n}{2}", r"\frac{N}{2}"), ("R^2-r^2", "0"), ("Rr", "r^2"), ("S_n-s_n", "0"), ("R", "r"),
            ("x^2+c", "x^2+C+1"), ("aA", "a^2"),
        ),
    ),
    "ways of saying it": Kind(
        "made for this table: answers in words, vectors, antiderivatives, several options",
        right=(
            ("no real solutions", "no solution"), (r"\emptyset", r"\text{no solution}"), ("None", "no solutions"),
            ("DNE", "does not exist"), ("all real numbers", r"\mathbb{R}"), (r"\text{all reals}", r"(-\infty,\infty)"),
            ("1 in 4", "1/4"), ("3 out of 4", r"\frac34"), ("3 to 4", "3:4"), ("14 (fourteen)", "14"),
            ("Fourteen (14)", "14"), ("15k", "15000"), (r"\$1.5M", "1500000"), ("1.234,50", "1234.50"),
            ("1 234,50 €", "€1234.5"), ("1'234", "1234"), (r"\begin{pmatrix}1\\2\end{pmatrix}", "(1,2)"),
            ("(1,2)", r"\begin{bmatrix}1&2\end{bmatrix}"), ("(A) and (C)", "A, C"), ("CA", "A, C"),
            (r"{10 \choose 3}", "120"), ("{}^{10}C_3", "120"), ("_{10}P_3", "720"), (r"e^{i\pi}", "-1"),
            ("(2+i)(2-i)", "5"), (r"1\mathbf{i}+2\mathbf{j}", r"\mathbf{i}+2\mathbf{j}"),
            (r"3.0\times10^8~\mathrm{m\,s^{-1}}", "3e8 m/s"), (r"9.8\,\mathrm{m\,s^{-2}}", "9.8"),
        ),
        wrong=(
            ("no solution", "0"), (r"\emptyset", "0"), ("DNE", "no solution"), ("all real numbers", r"\mathbb{Z}"),
            ("1 in 4", "4"), ("3 out of 4", "3"), ("3 to 4", "4:3"), ("14 (fifteen)", "14"), ("3(3)", "3"),
            ("15k", "15"), ("1.5M", "1.5"), ("1.234,50", "1.2345"), ("1'234", "1.234"),
            (r"\begin{pmatrix}1\\2\end{pmatrix}", "(2,1)"),
            (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"), ("(A) and (C)", "A"),
            ("AB", "A, C"), ("{10 \\choose 3}", "103"), ("_{10}P_3", "120"), (r"e^{i\pi}", "1"), ("(2+i)(2-i)", "3"),
            (r"3.0\times10^8~\mathrm{m\,s^{-1}}", "3e8 m"),
        ),
    ),
    "times, residues, numerals and currencies": Kind(
        "made for this table: misses that a reading of the grader found, and others of the same kinds",
        right=(
            ("17:00", "5 pm"), ("5:30 p.m.", "17:30"), ("noon", "12:00 pm"), ("0:00", "12 am"), ("midnight", "12 am"),
            ("7:05", "7:05 am"), ("12 \\pmod 7", "x \\equiv 5 \\mod 7"), ("5", "5 \\bmod 7"), ("2 (mod 3)", "2"),
            ("5 modulo 7", r"5 \pmod{7}"), ("1_000", "1000"), ("12_345_678", "12345678"), ("0xFF", "255"),
            ("0b101", "5"), ("0o17", "15"), ("CHF 5", "5"), ("5 CHF", "CHF 5"), ("HK$20", "20 HKD"), ("NZ$5", "5 NZD"),
            ("R$5", "5 reais"), ("10 zł", "PLN 10"), ("CA$5", "C$5"), ("5", "5 kr"), (r"\sqrt{-1}", "i"),
            (r"2\sqrt{-3}", r"2i\sqrt{3}"), (r"(-1)^{1/2}", "i"), (r"\sqrt[3]{-8}", "-2"),
        ),
        wrong=(
            ("17:00", "5 am"), ("17:30", "5 pm"), ("12 pm", "0:00"), ("noon", "12 am"), ("3:2", "3 pm"),
            (r"5 \mod 7", r"6 \mod 7"), (r"5 \mod 7", r"5 \mod 8"), ("7", r"5 \mod 7"), ("1_0", "10"),
            ("1_000_0", "10000"), ("0x10", "10"), ("0xFG", "255"), ("0b12", "4"), ("CHF 5", "5 USD"),
            ("HK$20", "US$20"), ("A$5", "C$5"), ("5 SEK", "5 NOK"), ("10 zł", "10 Kč"), (r"\sqrt{-1}", "-i"),
            (r"\sqrt{-1}", "1"), (r"\sqrt{-4}", "2"), (r"\sqrt[3]{-8}", "2"),
        ),
    ),
    "words are not units": Kind(
        "units stripped by word endings: latex2sympy2_extended's math_normalization; lm-evaluation-harness #4031",
        right=(
            (r"\text{minus } 5", "-5"), (r"\text{negative } 3", "-3"), (r"\text{square root of } 5", r"\sqrt{5}"),
            (r"\text{half of } 10", "5"), (r"\text{at least } 5", r"\ge 5"), (r"\text{at most } 5", r"\le 5"),
            (r"5 \text{ or more}", r"\ge 5"), (r"\text{more than } 3", "> 3"),
            (r"\text{no solution}", r"\text{No solution}"),
            (r"\text{approximately } 8.24", "8.24"), (r"\text{The answer is } 7", "7"), (r"21\text{ dogs}", "21"),
            (r"9\text{ values}", "9"), (r"14\text{ right triangles}", "14"), (r"240\text{ ways}", "240 arrangements"),
            (r"\text{exactly}", r"\text{Exactly}"), ("3", r"3\text{ solutions}"), (r"7\text{ distinct integers}", "7"),
        ),
        wrong=(
            (r"\text{not } 7", "7"), (r"\text{no more than } 7", "7"), (r"\text{fewer than } 7", "7"),
            (r"7\text{ or fewer}", "7"),
            (r"\text{between } 6 \text{ and } 8", "7"), (r"\text{no solution for } 7", "7"), (r"\text{twice } 7", "7"),
            (r"7\text{ squared}", "7"), (r"7\text{ is not possible}", "7"), (r"\text{cube root of } 7", "7"),
            (r"7\text{ times}", "7"),
            (r"7\text{ below zero}", "7"), (r"\text{above } 7", "7"), (r"7\text{ fewer}", "7"),
            (r"\text{one less than } 7", "7"),
            (r"> 7", "7"), (r"\le 7", "7"), (r"\ne 7", "7"), (r"7\text{ dogs}", r"7\text{ cats}"),
            (r"\text{multiples of } 7", "7"),
        ),
    ),
    "units have a dimension": Kind(
        "minerva and MATH references with units; promptfoo #9142; lm-evaluation-harness #4032",
        right=(
            (r"1500\text{ m}", r"1.5\text{ km}"), (r"90\text{ min}", r"1.5\text{ hours}"),
            (r"2\text{ ft}", r"24\text{ inches}"),
            (r"1\text{ m}^2", r"10000\text{ cm}^2"), (r"36\text{ km/h}", r"10\text{ m/s}"),
            (r"9.8\,\mathrm{m/s^2}", "9.8"),
            (r"9.8 \text{ m s}^{-2}", r"9.8\text{ m/s}^2"), (r"60\text{ mph}", r"60\text{ miles per hour}"),
            ("3 pm", "3:00 p.m."),
            (r"12\text{ square feet}", r"12\text{ ft}^2"), (r"5\text{ litres}", r"5000\text{ mL}"),
            (r"2\text{ weeks}", r"14\text{ days}"),
            (r"20^\circ\text{C}", "20"), ("25 kg", r"25\text{ kilograms}"), (r"\pi \text{ rad}", r"\pi"),
            (r"\pi\text{ radians}", r"180^\circ"),
            (r"164\pi\text{ square feet}", r"164\pi"), (r"1\text{ kWh}", r"3600000\text{ J}"),
            (r"21\text{ square units}", "21"),
        ),
        wrong=(
            (r"5\text{ km}", r"5\text{ m}"), (r"5\text{ kg}", r"5\text{ lb}"), (r"5\text{ years}", r"5\text{ months}"),
            ("7 am", "7 pm"),
            (r"5\text{ m/s}", r"5\text{ km/h}"), (r"5\text{ m/s}", r"5\text{ m/s}^2"), (r"5\text{ m}^2", r"5\text{ m}"),
            (r"60\text{ mph}", r"60\text{ kph}"),
            (r"5\text{ hours}", r"5\text{ minutes}"), (r"20^\circ\text{C}", r"20^\circ\text{F}"),
            (r"5\text{ N}", r"5\text{ J}"),
            (r"3\text{ feet}", r"3\text{ yards}"), (r"1500\text{ m}", r"15\text{ km}"), (r"5x", "5"),
            (r"5\text{ gallons}", r"5\text{ liters}"),
            (r"5\text{ square feet}", r"5\text{ cubic feet}"), (r"180\text{ radians}", r"180^\circ"), ("12:30", "1:30"),
        ),
    ),
    "scales and currencies count": Kind(
        "GSM8K answers in dollars and cents; verl #7274; tpu-inference #2318 (Answer: \\$18)",
        right=(
            (r"3\text{ thousand}", "3000"), (r"1.2\text{ billion}", "1200000000"), (r"2\text{ dozen}", "24"),
            (r"\$2.5\text{ million}", r"\$2{,}500{,}000"),
            (r"80\text{ cents}", r"\$0.80"), (r"\$18", "18"), ("US$18", "18"), ("€12.50", "12.5"), ("18 USD", r"\$18"),
            (r"50\%", "50"), ("50 percent", "0.5"),
            ("£3", "3 GBP"), ("5 million", "5{,}000{,}000"), (r"5.4\text{ cents}", "5.4"), ("₹100", "100"),
            ("25\\text{ percent}", r"25\%"), ("half a million", "half a million"),
        ),
        wrong=(
            (r"3\text{ thousand}", "3"), ("3", r"3\text{ million}"), (r"3\text{ billion}", r"3\text{ million}"),
            ("€5", r"\$5"), (r"80\text{ cents}", r"80\text{ dollars}"),
            (r"2\text{ dozen}", "12"), (r"50\%", r"5\%"), ("50", r"5\%"), ("£5", "€5"), (r"0.5\%", "50"),
            ("12", r"12\text{ hundred}"), (r"\$5\text{ million}", r"\$5"),
            ("5 cents", r"\$5"), (r"\$1.80", r"18\text{ cents}"), (r"2\text{ score}", "2"),
        ),
    ),
    "exact where both are exact": Kind(
        "Math-Verify #14 (1/2004! = 1/2006!), scitix/sieval #26, hendrycks/math",
        right=(
            (r"\frac{1}{2^{99}}", "2^{-99}"), (r"\frac{2}{2006!}", r"\frac{1}{1003 \cdot 2005!}"),
            ("0.333333", r"\frac{1}{3}"), ("1.4142136", r"\sqrt{2}"),
            ("1000000.5", r"\frac{2000001}{2}"), ("12345678", "12{,}345{,}678"), ("3.14159265", r"\pi"),
            ("2.50", "2.5"), ("-0", "0"), (r"6.02 \times 10^{23}", "6.02e23"),
            ("0.0000001", "10^{-7}"), (r"\frac{10^{100}+1}{10^{100}}", r"1+10^{-100}"), ("0.30000000000000004", "0.3"),
            (r"\sqrt[3]{27}", "3"),
        ),
        wrong=(
            (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"), (r"\frac{1}{10^{50}}", "0"), ("100000001", "100000000"),
            ("100000000.5", "100000000"), ("9999999", "10000000"),
            ("1.0001", "1"), ("3.1416", r"\pi"), ("0.67", r"\frac{2}{3}"), (r"10^{100}", "10^{100}+1"),
            ("2^{2006}", "2^{2006}-1"), (r"\frac{22}{7}", r"\pi"), ("1e-20", "1e-21"),
            ("0.999999", "1"), ("98765.4321", "98765.43"), (r"\sqrt{2}", r"\sqrt{2}+10^{-20}"),
        ),
    ),
    "nothing is read out of what cannot be read": Kind(
        "Math-Verify #14, #41, #60, #64 and #82",
        right=(
            (r"1, 2, \dots, n", r"1,2,\ldots,n"),
            (r"\begin{cases}1 & x>0\\0 & x\le 0\end{cases}", r"\begin{cases} 1 & x > 0 \\ 0 & x \leq 0 \end{cases}"),
            (r"4\sqrt(2)", r"4\sqrt{2}"), (r"\sqrt{1/n}", r"\frac{1}{\sqrt{n}}"), (r"n=2,3,4", "n = 2, 3, 4"),
            (r"D=(0,1)", "(0,1)"), (r"3x-y+13=0", "3x - y + 13 = 0"),
            (r"2x+4y-3=0", r"y=-\frac{1}{2}x+\frac{3}{4}"), (r"a=1 \text{ or } a=-2", r"a=-2 \text{ or } a=1"),
            (r"E_1, E_2", "E_{1},E_{2}"),
        ),
        wrong=(
            (r"1, 2, \dots, n", "1"), (r"1, 2, \dots, n", "n"), (r"2, 4, 6, \ldots", r"1, 3, 5, \ldots"),
            (r"1-\frac{1}{\mathrm{e}}", r"1+\frac{1}{\mathrm{e}}"),
            ("4", r"4\sqrt(2)"), ("n=2,3,4", "n=1,2,3"), ("D=(0,1.5)", "D=(0,1)"),
            (r"F_n=\sum_{k=0}^{n-2}F_kF_{n-k-2}", r"F_n=\sum_{k=0}^{n-1}F_kF_{n-k-1}"),
            (r"21, 36, \text{ and } 82", r"19, 46, \text{ and } 82"), (r"2021", r"\pm 2021"), ("1:00", "12:00"),
            (r"1:4:9:\ldots", r"1:2:3:\ldots"), ("3x+4y+14=0", "3x-y+13=0"),
            (r"\forall x>0, f(x)=0", "f(x)=0"), (r"5 @ 3", "5"), (r"5 ?", "3"),
            (r"\frac{1}{2} \star 3", r"\frac{1}{2}"), (r"\begin{cases}1\\2\end{cases}", "2"),
            (r"\sum_{k=1}^{\ldots} 5", "5"),
        ),
    ),
    "unicode": Kind(
        "Math-Verify #76 and models that answer without LaTeX; Chinese and Arabic data sets (CMATH, DAPO)",
        right=(
            ("½", r"\frac12"), ("3½", "3.5"), ("√3/2", r"\frac{\sqrt{3}}{2}"), ("2√3", r"2\sqrt{3}"), ("x³", "x^3"),
            ("π/4", r"\frac{\pi}{4}"), ("2π", r"2\pi"), ("−7", "-7"),
            ("－７", "-7"), ("３．５", "3.5"), ("٢٥", "25"), ("٣٫٥", "3.5"), ("۱۲", "12"),
            ("२५", "25"), ("二十五", "25"),
            ("三分之二", r"\frac{2}{3}"), ("百分之五十", r"50\%"), ("2.5万", "25000"),
            ("25元", "25"), ("15厘米", r"15\text{ cm}"), ("1或2", "1,2"), ("1、2、3", "1,2,3"), ("［1，2］", "[1,2]"),
            ("x ≠ 0", r"x \neq 0"), ("∞", r"\infty"), ("∅", r"\emptyset"),
            ("(−∞, 2]", r"(-\infty,2]"), ("5 × 10⁻³", "0.005"), ("a₁ + 1", "a_1+1"), ("∛8", "2"), ("90°", "90"),
            ("±3", r"\pm 3"), ("12 سم", "12"), ("١٢ أو ١٣", "12, 13"), ("5 个", "5"), ("½ + ⅓", r"\frac56"),
        ),
        wrong=(
            ("⅓", r"\frac12"), ("√3", "3"), ("x²", "x^3"), ("x²", "2x"), ("−7", "7"), ("２５", "52"), ("٢٥", "52"),
            ("三十", "3"), ("三分之二", r"\frac{3}{2}"), ("2.5万", "2.5"), ("25元", r"\$25"),
            ("15厘米", r"15\text{ m}"), ("≥3", r"\le 3"), ("≥3", "3"), ("≈3", "4"), ("±3", "3"), ("（1，2）", "(2,1)"),
            ("非5", "5"), ("不是5", "5"), ("负五", "5"), ("2∛2", r"2\sqrt{2}"), ("10⁻³", "10^3"),
            ("5 米", r"5\text{ 秒}"),
        ),
    ),
    "numbers however written": Kind(
        "Math-Verify #35 and #37, lm-evaluation-harness #3785 (bases), openai/prm800k grader, GSM8K",
        right=(
            (r"\frac12", r"\frac{1}{2}"), (r"\text{13}", "13"), (r"0.\overline{3}", r"\frac13"),
            (r"0.1\overline{6}", r"\frac{1}{6}"), ("0.333...", r"\frac{1}{3}"), ("1010_2", "10"), ("2516", "2516_8"),
            (r"\mbox{four}", "4"), ("twenty-five", "25"), ("one half", "0.5"), ("two thirds", r"\frac23"),
            ("1 000 000", "1000000"), ("10,\\!080", "10080"), ("3 1/4", r"\frac{13}{4}"),
            (r"2^{\text{nd}}", r"2^{\text{nd}}"),
            ("082", "82"), ("12+25+25 = 62", "62"), (r"\frac{5}{3} \approx 1.67", r"\frac{5}{3}"), ("3,5", "3.5"),
            (r"\frac{0.5a}{b}/0.5", r"2\frac{a}{2b}"), (r"7\sqrt{1/2}", r"7\sqrt{0.5}"), (r"(2A)_{16}", "42"),
        ),
        wrong=(
            (r"\frac{1}{2}", r"\frac{2}{1}"), (r"0.\overline{3}", "0.3"), ("0.33", r"0.\overline{3}"),
            ("1010_2", "1010"), ("1011_2", "10"), ("four", "5"), ("twenty-five", "20"), ("two thirds", r"\frac{3}{2}"),
            ("1 000", "1"),
            ("12+25+25 = 62", "12"), ("3 1/4", r"\frac{31}{4}"), ("3,5", "35"), ("1,234", "1.234"), ("minus four", "4"),
            (r"1\frac{1}{2}", r"\frac{1}{2}"),
        ),
    ),
    "lists, sets and intervals": Kind(
        "Math-Verify #56, huggingface/blog #2675, lm-evaluation-harness #3785 (permutations), OlympiadBench",
        right=(
            (r"6, 8\text{, and }10", "6,8,10"), (r"\{3,1,2\}", r"\{1,2,3\}"),
            (r"0^\circ \text{ and } 360^\circ", r"0,360"), (r"x=1, y=2", "(1,2)"), (r"(x,y)=(1,2)", "(1,2)"),
            (r"x = \pm 3", "3,-3"),
            (r"\left(3, \frac{\pi}{2}\right)", r"(3,\frac{\pi}{2})"), (r"\{1\}\cup\{1,4\}", r"\{1,4\}"),
            (r"-1 < x < 1", "(-1,1)"), ("(0.5, 1/3)", r"(\frac12,\frac13)"),
            (r"\frac{-1 \pm \sqrt{5}}{2}", r"\frac{-1+\sqrt5}{2},\frac{-1-\sqrt5}{2}"),
            (r"\text{Softball, Kickball}", r"\text{Softball, Kickball}"), (r"\langle 1,2\rangle", r"(1,2)"),
            (r"1;2;3", "1,2,3"), (r"\{5\}", "5"),
        ),
        wrong=(
            (r"(3,\frac{2\pi}{3})", r"(3,\frac{\pi}{2})"), ("(1,2,3)", "(3,2,1)"), (r"\{1,2\}", "(1,2)"),
            ("1,1,2", "1,2,2"), ("[0,1)", "(0,1]"), ("3", r"\pm 3"), ("1,2", "1,2,2,3"),
            ("(1/2006!, 1)", "(1/2004!, 1)"),
            (r"-1 \le x \le 1", "(-1,1)"), (r"(-\infty,2)\cup(3,\infty)", r"(-\infty,2]\cup[3,\infty)"),
            (r"\{\}", r"\{0\}"), ("1,000", "1"), ("(1,2),(3,5)", "(1,2),(3,4)"),
        ),
    ),
    "options": Kind(
        "NVIDIA-NeMo/Gym #1790 and #1844, inspect_ai #2216, Soup #357, VLMEvalKit #1591",
        right=(
            (r"\text{C: } 12", "C"), (r"\textbf{(C)}\ 12", r"\text{(C)}"), ("C. 12", "(C) 12"), ("12", "(C) 12"),
            ("C", "C) 12"), (r"\text{E}", "E"), ("(b)", "B"), ("Option D", "D"), ("D.", "D"), (r"\textbf{(A)}~7", "7"),
            ("$B", "B"),
        ),
        wrong=(
            ("(B) 12", "C"), ("(B) 12", "(C) 12"), ("(C) 13", "(C) 12"), ("13", "(C) 12"),
            (r"\text{None of the above}", "A"), (r"\text{Don't know}", "D"), (r"\langle H\rangle \ll \Delta E", "E"),
            ("A, C", "A"), (r"\text{Both A and B}", "A"), ("I", "A"),
        ),
    ),
    "words": Kind(
        "MATH references in \\text{}; DeepScaleR's copies without spaces",
        right=(("TRUE", "True"), ("false", r"\text{False}"), (r"\text{two lines}", "twolines"), ("NO", "No"),
        (r"\text{Wednesday.}", "Wednesday"), ("CBAD", r"\text{CBAD}"), ("the ellipse", "the ellipse"),
        ("Odd", r"\text{odd}")),
        wrong=(("true", "false"), ("ABCD", "CBAD"), (r"\text{not odd}", r"\text{odd}"), (r"\text{no}", r"\text{yes}"),
        ("October 30", "October 31"), (r"\text{ellipse}", r"\text{hyperbola}"), ("true or false", "true"),
        ("even", "odd")),
    ),
}  # fmt: skip

RESPONSES = {
    "how an answer is marked": Kind(
        "made for this table: boxes without braces (hendrycks/math reads them), JSON, chosen options, other languages",
        right=(
            ("\\boxed 7", "7"), ("So \\boxed7.", "7"), ("\\framebox{7}", "7"), ("\\boxed{\\text{x is }7}", "7"),
            ('{"answer": 7}', "7"), ('```json\n{"answer": "7"}\n```', "7"), ("I choose option B", "B"), ("= 7", "7"),
            ("∴ 7", "7"), ("答え: 7", "7"), ("정답: 7", "7"), ("No, it is not possible.", "No"),
            ("The answer is 7. To check: \\(3 +", "7"), ("\\[\nx = 8 + 1\n\\]", "9"),
            ("Case 1: it is 5.\nCase 2: none", "5"), ("So 24 - 7 = 17 students are not on varsity.", "17"),
            ("The remainder when \\(1 + 2\\) is divided by 4 is 3.", "3"), ("Lee earned $558 mowing lawns.", "558"),
            ("It takes 6/3=.5 hour which is 30 minutes.", "30"), ("The net sum is $118 000.", "118000"),
        ),
        wrong=(
            ("7 is not the answer", "7"), ("The answer isn't 7", "7"), ("Step 7: done", "7"), ("It wasn't 7", "7"),
            ('{"answer": 8, "steps": 7}', "7"), ("I choose option B, not C", "C"), ("\\boxed 8 and 7", "7"),
            ("No, it is not possible.", "yes"), ("7 is wrong", "7"), ("答え: 8", "7"), ("\\framebox{8} 7", "7"),
            ("It gets $7$. So we have \\[x^2 -", "7"), ("1. \\(2^2 = 4\\)\n2. \\(2^3 = 7\\)\n3. \\(2^", "7"),
            ("The answer is 7, so \\(\\boxed", "7"),
            ("It is not 7, it is 8", "7"), ("The sum of \\(7\\) and 1 is 8.", "7"), ("7 is an incorrect guess", "7"),
            ("The value of $x$ is 8 if $y = 7$ is 1.", "7"), ("$7 per day", "€7"), ("So $7 is wrong.", "7"),
            ("Yes, it is 8.", "7"),
        ),
    ),
    "markdown": Kind(
        "Math-Verify #76 (**73**), vllm-project/tpu-inference #2318, lm-evaluation-harness #2552",
        right=(
            ("Thus, the number is **73**.\n\n---\n\n✅ Final Answer: **73**", "73"),
            ("**Answer: \\$18 per day.**", "18"), ("### Final Answer\n\n**42**", "42"),
            ("So the result is\n\n> **12**", "12"), ("- **Answer**: `x = 5`", "5"),
            ("__Answer:__ 9", "9"), ("The answer is ***8***", "8"), ("```\n15\n```", "15"),
            ("## **Answer:** $\\frac{3}{4}$", "0.75"), ("**The final answer is** $7$.", "7"),
            ("Answer: *even*", r"\text{even}"), ("**B**", "B"),
            (r"Thus the answer is \[ \boxed{42} \]", "42"), ("**Answer:** 2**3", "8"),
        ),
        wrong=(
            ("**Answer:** **37**", "73"), ("**73** is wrong.\n**Answer: 74**", "73"),
            ("Final Answer: **not 73**", "73"), ("**at least 73**", "73"), ("**Step 73.** The answer is 5.", "73"),
            ("*7*3", "73"), ("Answer: **7**\n**3**", "73"), ("### 73 cases\n\nAnswer: 12", "73"),
        ),
    ),
    "where the answer is": Kind(
        "verl #7274, THUDM/slime #2116 and #2219, NVIDIA-NeMo/RL #3635, "
        "antirez/ds4 #319, omlx #3668, NeMo-Skills #1511, marin #9163",
        right=(
            ("<think>Maybe \\boxed{3}?</think>\nThe answer is 4.", "4"), ("<think>\\boxed{3}</think> So **4**.", "4"),
            ("<think>hm</think><answer>12</answer>", "12"), ("<answer>\\boxed{12}</answer>", "12"),
            ("<answer> The answer is 12 </answer>", "12"),
            ("2+40=42\n#### 42\n and the reasoning above confirms this.", "42"), ("Answer: m+n = 256+37 = 293", "293"),
            ("The answer is B. Note that A is a common distractor.", "B"), ("ANSWER IS D. A is incorrect.", "D"),
            ("so $\\boxed{\\langle H\\rangle \\ll \\Delta E}$\n\n**Answer: D**", "D"), ("答案是：25。", "25"),
            ("所以答案为 **12**。", "12"), ("الجواب هو ٢٥", "25"), ("Final answer:\n\n\\[\n\\frac{1}{2}\n\\]", "0.5"),
            ("So Janet makes $18 every day.", "18"),
            ("The answer is 5 because 2+3=5.", "5"), ("Hence x = 12 cm.", "12"),
            ("Therefore, the total cost is $1,250.50.", "1250.5"), ("reasoning \\boxed{1}</think>\\boxed{42}", "42"),
            ("It took 2.5 million years.", "2500000"),
            ("The final answer is $-\\frac{1}{2}$. I hope it is correct.", "-1/2"),
        ),
        wrong=(
            ("<think>\\boxed{4}</think>\nThe answer is 3.", "4"),
            ("<think>The answer is 4.</think>\nThe answer is 3.", "4"), ("<answer>3</answer> though 4 is close", "4"),
            ("#### 41\n#### 42", "41"), ("Answer: m+n = 256+37 = 293", "256"),
            ("The answer is C because I computed the integral of A.", "A"),
            ("\\boxed{4} is what others say. \\boxed{3}", "4"), ("The answer is not 4.", "4"),
            ("It is at least 4.", "4"), ("答案是：25。", "26"), ("The answer is between 3 and 4.", "4"),
            ("The answer is 4.5.", "4"),
            ("I give up.", "4"), ("So 4 is too small, and the answer is 5.", "4"), ("\\boxed{3} and \\boxed{4}", "4"),
            ("The answer is minus 4.", "4"), ("It cannot be 4", "4"), ("The answer is 4 million.", "4"),
            ("There is no solution for 4", "4"), ("The answer is \\boxed{", "4"),
        ),
    ),
}  # fmt: skip
