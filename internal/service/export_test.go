package service

// DeleteExpiredKeys is deleteExpiredKeys, for the tests on a database.
var DeleteExpiredKeys = deleteExpiredKeys
