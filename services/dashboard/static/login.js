// What the address says after its # is no part of a request: the form takes it along, so that a link leads where it should.

document.querySelector("form").action = `/login${location.hash}`;
