// Package modelcheck checks the saga exhaustively: the real decisions of the three
// services, driven through every order of deliveries, repetitions, dead letters,
// redrives, timeouts and cancellations that the budgets allow. It has no code besides
// its tests; see model_test.go for what is modelled.
package modelcheck
