"""What a reader does on the page of a report, and what its gallery then shows."""

# The numbers of the pairs that the gallery shows.
CARDS = "return [...document.querySelectorAll('#gallery article.pair')].map(card => +card.dataset.number)"


def choose(browser, control: str, value: str) -> None:
    """As a reader does: set a field and tell the page."""
    browser.run(
        "const field = document.getElementById(arguments[0]); field.value = arguments[1];"
        "field.dispatchEvent(new Event(field.tagName === 'SELECT' ? 'change' : 'input', {bubbles: true}))",
        control, value,
    )  # fmt: skip
