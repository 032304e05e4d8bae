package provision

// Open is for tests that go down too.
var Open = open
