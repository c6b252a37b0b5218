#Requires -RunAsAdministrator
# Runs the Windows-only tests on this host as SYSTEM, because only SYSTEM and services can activate the plugin's class. It
# needs Go, and the programs of make build in dist. See docs/testing-on-windows.md.
param([string]$Dist = (Join-Path $PSScriptRoot '..\dist'))
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

$packages = 'internal/winsec', 'internal/endpoint', 'internal/com', 'internal/installer', 'cmd/ccg-plugin-installer', 'test/host'
$names = $packages | ForEach-Object { Split-Path $_ -Leaf }

if (-not (Test-Path 'HKLM:\SYSTEM\CurrentControlSet\Control\CCG\COMClasses')) {
    throw 'The Containers feature is not enabled: run Install-WindowsFeature Containers, restart this host, and run this script again.'
}

# Below Program Files, where only administrators can create programs that SYSTEM runs. New-Item fails during another run.
$task = 'ccgrkc-test'
$dir = Join-Path $env:ProgramFiles $task
New-Item -ItemType Directory -Path $dir | Out-Null
try {
    Copy-Item -Path (Join-Path $Dist '*.exe') -Destination $dir
    $env:CGO_ENABLED = '0'
    $lines = @('@echo off', 'cd /d "%~dp0"', 'set "CCGRKC_DIST=%~dp0."')
    foreach ($package in $packages) {
        $name = Split-Path $package -Leaf
        go -C "$PSScriptRoot\.." test -c -trimpath -tags faultpoints -o "$dir\$name.test.exe" "./$package"
        if ($LASTEXITCODE -ne 0) { throw "The tests of $package do not compile." }
        $lines += "$name.test.exe -test.v -test.timeout 20m >$name.txt 2>&1"
        $lines += ">$name.code echo %errorlevel%" # in this order, because "1>file" would be a redirection
    }
    $lines += '>finished echo.'
    Set-Content -Path "$dir\run.cmd" -Value $lines -Encoding ascii

    $action = New-ScheduledTaskAction -Execute 'cmd.exe' -Argument "/c `"$dir\run.cmd`""
    $principal = New-ScheduledTaskPrincipal -UserId 'NT AUTHORITY\SYSTEM' -LogonType ServiceAccount
    Register-ScheduledTask -TaskName $task -Action $action -Principal $principal | Out-Null
    Start-ScheduledTask -TaskName $task
    $deadline = (Get-Date).AddMinutes(55)
    while (-not (Test-Path "$dir\finished") -and (Get-Date) -lt $deadline) { Start-Sleep -Seconds 2 }

    $failed = @()
    foreach ($name in $names) {
        Write-Host "=== $name"
        if (Test-Path "$dir\$name.txt") { Get-Content -Path "$dir\$name.txt" -Encoding UTF8 | Write-Host }
        if (-not (Test-Path "$dir\$name.code") -or (Get-Content -Path "$dir\$name.code").Trim() -ne '0') { $failed += $name }
    }
} finally {
    if (Get-ScheduledTask -TaskName $task -ErrorAction SilentlyContinue) {
        Stop-ScheduledTask -TaskName $task
        Unregister-ScheduledTask -TaskName $task -Confirm:$false
    }
    Remove-Item -Path $dir -Recurse -Force
}
if ($failed.Count -gt 0) { throw "Failed, or not finished within 55 minutes: $($failed -join ', ')" }
