package com

// Result is what GetPasswordCredentials returned. The caller wipes the password.
type Result struct {
	DomainName string
	Username   string
	Password   Password
}
