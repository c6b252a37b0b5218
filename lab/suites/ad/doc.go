// Package directory tests the product's package directory against the lab's Active Directory: each answer of a real
// domain controller must lead to the correct result or cause. It needs root, because the domain controllers do.
package directory
