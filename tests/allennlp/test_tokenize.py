import pytest

from qrnn.allennlp.tokenize import tokenize


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("It isn't BAD, is it?", ["It", "is", "n't", "BAD", ",", "is", "it", "?"]),
        ("one<br /><br />two<br>three<BR/>four</br>five< br / >six", "one two three four five six"),
        ("  one\t\ttwo \n\n three\x85four\u00a0five\u2028six ", "one two three four five six"),
        ("rock &amp roll", "rock & amp roll"),
        ("10/10 :-)", "10/10 :-)"),
        ("", ""),
        (" <br /> \n", ""),
    ],
)
def test_tokenize(text, tokens):
    assert tokenize(text) == (tokens.split() if isinstance(tokens, str) else tokens)
