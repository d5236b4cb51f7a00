// Package e2e runs the almanac binary as its users do: clusters of real processes that
// are killed, stopped and started while clients work, and judges what the clients saw.
// Beside it stand comparisons with etcd. It owns no product code and no expectations
// beyond the documented ones. Tests only; they run with ALMANAC_E2E=1.
package e2e
