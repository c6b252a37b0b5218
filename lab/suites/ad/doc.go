// Package directory holds the tests of the product's package of that name against the lab's Active Directory: what a real
// domain controller answers, and whether it is recognised. It needs root, as the domain controllers do.
package directory
