-- MLflow's users have a database of their own: both keep a table of migrations.
CREATE DATABASE mlflow_users;
