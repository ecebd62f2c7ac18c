"""A browser and pages opened in it, for the tests of what the page shows."""

import pytest

from tests.debian import UnavailableError
from tests.report.html.browser import Visit, chromium
from tests.report.html.synthetic import write_run
from wdmoe_opencompass.report.html.page import write_page


@pytest.fixture(scope="module")
def browser():
    try:
        with chromium() as one:
            yield one
    except UnavailableError as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("page") / "20260101_000000")


@pytest.fixture(scope="module")
def shared(browser, run):
    visit = Visit(browser, write_page(run)[0])
    yield visit
    visit.close()


@pytest.fixture
def visit(shared):
    """The run's page as it was opened."""
    shared.restored()
    return shared


@pytest.fixture
def open_page(browser):
    """Opens other pages, and closes them."""
    visits = []

    def opened(path, **options):
        visits.append(Visit(browser, path, **options))
        return visits[-1]

    yield opened
    for page in visits:
        page.close()
